package ondisk

import (
	"fmt"
	"math"
)

// Header is one of the two headers (MS-VHDX 2.2.2).
//
//	 0     4  signature "head"
//	 4     4  CRC-32C of the 4,096 bytes
//	 8     8  SequenceNumber
//	16    16  FileWriteGUID
//	32    16  DataWriteGUID
//	48    16  LogGUID        zero: the log is empty
//	64     2  LogVersion     0
//	66     2  Version        1
//	68     4  LogLength      multiple of 1 MiB
//	72     8  LogOffset      multiple of 1 MiB
//	80  4016  reserved       written zero, ignored on read
type Header struct {
	SequenceNumber      uint64
	FileWriteGUID       GUID
	DataWriteGUID       GUID
	LogGUID             GUID
	LogVersion, Version uint16
	LogLength           uint32
	LogOffset           uint64
}

// FormatVersion is the only version of the format.
const FormatVersion = 1

// MaxHeaderSequence is the greatest sequence number accepted: whatever one
// session adds to it does not overflow.
const MaxHeaderSequence = math.MaxUint64 - 1<<32

// DecodeHeader reads the 4,096 bytes of a header. Only signature and checksum
// decide whether the slot is valid; what it says is judged by
// [Header.Validate], for the current header alone.
func DecodeHeader(b []byte) (Header, error) {
	const name = "header"
	if len(b) < HeaderSize {
		return Header{}, errShort(name, len(b), HeaderSize)
	}
	b = b[:HeaderSize]
	if err := checkSignature(name, b, signatureHeader); err != nil {
		return Header{}, err
	}
	if err := checkChecksum(name, b, headerChecksumField); err != nil {
		return Header{}, err
	}
	return Header{
		SequenceNumber: le.Uint64(b[8:]),
		FileWriteGUID:  GUID(b[16:32]),
		DataWriteGUID:  GUID(b[32:48]),
		LogGUID:        GUID(b[48:64]),
		LogVersion:     le.Uint16(b[64:]),
		Version:        le.Uint16(b[66:]),
		LogLength:      le.Uint32(b[68:]),
		LogOffset:      le.Uint64(b[72:]),
	}, nil
}

// Validate reports what keeps a file with this current header from being
// opened.
func (h Header) Validate() error {
	const name = "header"
	end := h.LogOffset + uint64(h.LogLength)
	switch {
	case h.Version != FormatVersion:
		return errf(name, 66, "version %d, only %d is known", h.Version, FormatVersion)
	case h.LogVersion != 0 && !h.LogGUID.IsZero():
		return errf(name, 64, "log version %d with a log to replay, only 0 is known", h.LogVersion)
	case h.SequenceNumber > MaxHeaderSequence:
		return errf(name, 8, "sequence number %#x leaves no room to count on", h.SequenceNumber)
	case h.LogLength%Alignment != 0:
		return errf(name, 68, "log length %#x is no multiple of 1 MiB", h.LogLength)
	case h.LogLength > MaxLogLength:
		return errf(name, 68, "log length %#x, at most %#x is accepted", h.LogLength, MaxLogLength)
	case h.LogLength == 0 && !h.LogGUID.IsZero():
		return errf(name, 48, "log GUID %v is set, but the log has no length", h.LogGUID)
	case h.LogLength == 0:
		return nil // no log: its offset means nothing
	case h.LogOffset%Alignment != 0:
		return errf(name, 72, "log offset %#x is no multiple of 1 MiB", h.LogOffset)
	case h.LogOffset < HeaderSectionSize:
		return errf(name, 72, "log offset %#x lies in the header section", h.LogOffset)
	case end < h.LogOffset || end > math.MaxInt64:
		return errf(name, 72, "log offset %#x plus length %#x overflows", h.LogOffset, h.LogLength)
	}
	return nil
}

// Encode writes the header to the first 4,096 bytes of dst, checksum included.
func (h Header) Encode(dst []byte) {
	dst = dst[:HeaderSize]
	clear(dst)
	signature(dst, signatureHeader)
	le.PutUint64(dst[8:], h.SequenceNumber)
	copy(dst[16:], h.FileWriteGUID[:])
	copy(dst[32:], h.DataWriteGUID[:])
	copy(dst[48:], h.LogGUID[:])
	le.PutUint16(dst[64:], h.LogVersion)
	le.PutUint16(dst[66:], h.Version)
	le.PutUint32(dst[68:], h.LogLength)
	le.PutUint64(dst[72:], h.LogOffset)
	le.PutUint32(dst[headerChecksumField:], Checksum(dst, headerChecksumField))
}

// CurrentHeader chooses from what [DecodeHeader] said of both slots: the valid
// one, or of two the one with the greater sequence number. The specification
// is silent on equal numbers. Disk2vhd writes two identical headers, which is
// harmless; two differing ones leave open which is newer, and are refused.
func CurrentHeader(h1 Header, err1 error, h2 Header, err2 error) (index int, err error) {
	switch {
	case err1 != nil && err2 != nil:
		return 0, fmt.Errorf("neither header is valid: first: %w; second: %w", err1, err2)
	case err2 != nil:
		return 0, nil
	case err1 != nil:
		return 1, nil
	case h1.SequenceNumber > h2.SequenceNumber || h1 == h2:
		return 0, nil
	case h1.SequenceNumber < h2.SequenceNumber:
		return 1, nil
	}
	return 0, errf("header", 8, "both headers carry sequence number %d and differ", h1.SequenceNumber)
}
