package ondisk

import "math"

// LogEntryHeader begins a log entry (MS-VHDX 2.3.1.1).
//
//	 0   4  signature "loge"
//	 4   4  CRC-32C of the entry's EntryLength bytes
//	 8   4  EntryLength        multiple of 4 KiB
//	12   4  Tail               offset in the log of the first entry of the
//	                           sequence that this entry ends, multiple of 4 KiB
//	16   8  SequenceNumber     above 0, one more than the entry before
//	24   4  DescriptorCount
//	28   4  reserved
//	32  16  LogGUID            the header's when the entry was written
//	48   8  FlushedFileOffset  a size of the file that was durable by then
//	56   8  LastFileOffset     the smallest size that holds every structure
type LogEntryHeader struct {
	EntryLength, Tail uint32
	SequenceNumber    uint64
	DescriptorCount   uint32
	LogGUID           GUID
	FlushedFileOffset uint64
	LastFileOffset    uint64
}

// LogDescriptor is a change of the file (MS-VHDX 2.3.1.2 and 2.3.1.3). The
// bytes of a data descriptor that make room for signatures and sequence
// numbers in the data sector travel in the descriptor.
//
//	    zero descriptor          data descriptor
//	 0  "zero"                   "desc"
//	 4  reserved (4)             TrailingBytes (4): original bytes 4092..4095
//	 8  ZeroLength (8)           LeadingBytes (8): original bytes 0..7
//	16  FileOffset (8), multiple of 4 KiB
//	24  SequenceNumber (8), the entry's
//
// Data sector:
//
//	   0     4  "data"
//	   4     4  upper half of the entry's SequenceNumber
//	   8  4084  original bytes 8..4091
//	4092     4  lower half of the entry's SequenceNumber
type LogDescriptor struct {
	Zero       bool
	FileOffset uint64
	Length     uint64 // of a data descriptor: 4096
	Data       []byte // of a data descriptor: the 4096 original bytes
}

// LogEntry is a whole entry: header, descriptors, and one data sector for each
// data descriptor, in their order.
type LogEntry struct {
	LogEntryHeader
	Descriptors []LogDescriptor
}

// descriptorSectors is the number of sectors that the header and count
// descriptors take: the first holds 126, each further one 128.
func descriptorSectors(count uint64) uint64 {
	return (LogEntryHeaderSize + count*LogDescriptorSize + LogSectorSize - 1) / LogSectorSize
}

// LogEntryLength is the size of an entry with that many descriptors, of which
// so many carry data.
func LogEntryLength(descriptors, dataDescriptors int) int {
	return (int(descriptorSectors(uint64(descriptors))) + dataDescriptors) * LogSectorSize
}

// MaxLogPages is how many data pages one entry may carry and leave a sector of
// the ring free. A ring filled by one entry would leave nowhere to write the
// next without destroying the only valid sequence.
func MaxLogPages(logLength uint32) int {
	sectors := int(logLength)/LogSectorSize - 1
	// n + ceil((n+2)/128) <= sectors, solved for n.
	return max(0, (128*sectors-2)/129)
}

// DecodeLogEntryHeader reads the header of an entry in a log of logLength
// bytes from the start of b, and makes the checks that need nothing else. It
// does not look at the checksum, which covers the whole entry.
//
// FlushedFileOffset and LastFileOffset fit an int64. Whether they are
// multiples of 1 MiB is not judged: other software writes the size of the file
// as it is, or 0.
func DecodeLogEntryHeader(b []byte, logLength uint32) (LogEntryHeader, error) {
	const name = "log entry header"
	if len(b) < LogEntryHeaderSize {
		return LogEntryHeader{}, errShort(name, len(b), LogEntryHeaderSize)
	}
	if err := checkSignature(name, b, signatureLogEntry); err != nil {
		return LogEntryHeader{}, err
	}
	h := LogEntryHeader{
		EntryLength:       le.Uint32(b[8:]),
		Tail:              le.Uint32(b[12:]),
		SequenceNumber:    le.Uint64(b[16:]),
		DescriptorCount:   le.Uint32(b[24:]),
		LogGUID:           GUID(b[32:48]),
		FlushedFileOffset: le.Uint64(b[48:]),
		LastFileOffset:    le.Uint64(b[56:]),
	}
	return h, h.check(logLength)
}

// MayBeLogEntry reports whether a sector begins as an entry does: most sectors
// of a log do not, and an error that says so costs more than to look.
func MayBeLogEntry(b []byte) bool { return len(b) >= 4 && string(b[:4]) == signatureLogEntry }

func (h LogEntryHeader) check(logLength uint32) error {
	const name = "log entry header"
	sectors, count := uint64(h.EntryLength/LogSectorSize), uint64(h.DescriptorCount)
	switch {
	case h.EntryLength == 0 || h.EntryLength%LogSectorSize != 0:
		return errf(name, 8, "entry length %#x is no multiple of 4 KiB above 0", h.EntryLength)
	case h.EntryLength > logLength:
		return errf(name, 8, "entry length %#x in a log of %#x bytes", h.EntryLength, logLength)
	case h.Tail%LogSectorSize != 0:
		return errf(name, 12, "tail %#x is no multiple of 4 KiB", h.Tail)
	case h.Tail >= logLength:
		return errf(name, 12, "tail %#x in a log of %#x bytes", h.Tail, logLength)
	case h.SequenceNumber == 0:
		return errf(name, 16, "sequence number 0")
	case sectors < descriptorSectors(count) || sectors > descriptorSectors(count)+count:
		return errf(name, 24, "%d descriptors in an entry of %#x bytes", count, h.EntryLength)
	case h.FlushedFileOffset > math.MaxInt64:
		return errf(name, 48, "flushed file offset %#x", h.FlushedFileOffset)
	case h.LastFileOffset > math.MaxInt64:
		return errf(name, 56, "last file offset %#x", h.LastFileOffset)
	}
	return nil
}

// DecodeLogEntry reads an entry of a log of logLength bytes from b, which is
// the whole entry with the ring's wrap undone. All is validated but for what
// only the caller knows: the log's GUID and where the log and the file end. A
// descriptor's FileOffset is at least 192 KiB, for headers are never logged,
// and FileOffset plus Length fits an int64.
func DecodeLogEntry(b []byte, logLength uint32) (LogEntry, error) {
	return new(LogDecoder).Decode(b, logLength)
}

// LogDecoder is [DecodeLogEntry] for who reads many entries: what it returns is
// good until the next call.
type LogDecoder struct {
	descriptors []LogDescriptor
	pages       []byte
}

// Decode is [DecodeLogEntry].
func (r *LogDecoder) Decode(b []byte, logLength uint32) (LogEntry, error) {
	const name = "log entry"
	h, err := DecodeLogEntryHeader(b, logLength)
	if err != nil {
		return LogEntry{}, err
	}
	if uint64(len(b)) != uint64(h.EntryLength) {
		return LogEntry{}, errf(name, 8, "entry length %#x, but %#x bytes given", h.EntryLength, len(b))
	}
	if err := checkChecksum(name, b, logChecksumField); err != nil {
		return LogEntry{}, err
	}
	// The header's check bounds DescriptorCount by len(b).
	if cap(r.descriptors) < int(h.DescriptorCount) {
		r.descriptors = make([]LogDescriptor, h.DescriptorCount)
	}
	e := LogEntry{h, r.descriptors[:h.DescriptorCount]}
	sector := int(descriptorSectors(uint64(h.DescriptorCount))) * LogSectorSize
	if cap(r.pages) < len(b)-sector {
		r.pages = make([]byte, len(b)-sector)
	}
	pages := r.pages[:len(b)-sector]
	for i := range e.Descriptors {
		at := LogEntryHeaderSize + i*LogDescriptorSize
		d, err := decodeLogDescriptor(b, at, h.SequenceNumber)
		if err != nil {
			return LogEntry{}, err
		}
		if !d.Zero {
			if sector == len(b) {
				return LogEntry{}, errf(name, at, "descriptor %d has no data sector", i)
			}
			d.Data, pages = pages[:PageSize:PageSize], pages[PageSize:]
			if err := decodeDataSector(d.Data, b, at, sector, h.SequenceNumber); err != nil {
				return LogEntry{}, err
			}
			sector += LogSectorSize
		}
		e.Descriptors[i] = d
	}
	if sector != len(b) {
		return LogEntry{}, errf(name, sector, "%#x bytes after the last data sector", len(b)-sector)
	}
	return e, nil
}

// decodeLogDescriptor reads the descriptor at offset at of the entry b.
func decodeLogDescriptor(b []byte, at int, sequence uint64) (LogDescriptor, error) {
	const name = "log descriptor"
	d := LogDescriptor{FileOffset: le.Uint64(b[at+16:]), Length: PageSize}
	switch sig := b[at : at+4]; string(sig) {
	case signatureDataDescriptor:
	case signatureZeroDescriptor:
		d.Zero, d.Length = true, le.Uint64(b[at+8:])
	default:
		return d, &Error{name, at, "signature is neither \"desc\" nor \"zero\"", ErrSignature}
	}
	switch {
	case le.Uint64(b[at+24:]) != sequence:
		return d, errf(name, at+24, "sequence number %#x in entry %#x", le.Uint64(b[at+24:]), sequence)
	case d.Length%PageSize != 0:
		return d, errf(name, at+8, "length %#x is no multiple of 4 KiB", d.Length)
	case d.FileOffset%PageSize != 0:
		return d, errf(name, at+16, "file offset %#x is no multiple of 4 KiB", d.FileOffset)
	case d.FileOffset < FirstLoggedOffset:
		return d, errf(name, at+16, "file offset %#x: identifier and headers are never logged", d.FileOffset)
	case d.Length > math.MaxInt64 || d.FileOffset > math.MaxInt64-d.Length:
		return d, errf(name, at+16, "file offset %#x plus length %#x overflows", d.FileOffset, d.Length)
	}
	return d, nil
}

// decodeDataSector puts the page of the descriptor at offset at of the entry b
// together; its data sector is at offset sector.
func decodeDataSector(page, b []byte, at, sector int, sequence uint64) error {
	const name = "log data sector"
	s := b[sector : sector+LogSectorSize]
	if string(s[:4]) != signatureDataSector {
		return &Error{name, sector, "signature is not \"data\"", ErrSignature}
	}
	if got := uint64(le.Uint32(s[4:]))<<32 | uint64(le.Uint32(s[dataMiddleEnd:])); got != sequence {
		return errf(name, sector+4, "sequence number %#x in entry %#x", got, sequence)
	}
	copy(page, b[at+8:at+8+dataLeading])
	copy(page[dataLeading:dataMiddleEnd], s[dataLeading:dataMiddleEnd])
	copy(page[dataMiddleEnd:], b[at+4:at+4+dataTrailing])
	return nil
}

// Encode writes the entry to dst, which is exactly as long as the entry
// ([LogEntryLength]). EntryLength, DescriptorCount and the checksum follow from
// the descriptors. It allocates nothing and copies the data once.
func (e LogEntry) Encode(dst []byte) error {
	const name = "log entry"
	sector := int(descriptorSectors(uint64(len(e.Descriptors)))) * LogSectorSize
	clear(dst[:min(sector, len(dst))])
	for i := range e.Descriptors {
		d, at := &e.Descriptors[i], LogEntryHeaderSize+i*LogDescriptorSize
		if sector > len(dst) {
			break // reported below
		}
		le.PutUint64(dst[at+16:], d.FileOffset)
		le.PutUint64(dst[at+24:], e.SequenceNumber)
		if d.Zero {
			signature(dst[at:], signatureZeroDescriptor)
			le.PutUint64(dst[at+8:], d.Length)
			continue
		}
		if len(d.Data) != PageSize {
			return errf(name, at, "descriptor %d has %d bytes of data, want %d", i, len(d.Data), PageSize)
		}
		if sector += LogSectorSize; sector <= len(dst) {
			encodeData(dst[at:], dst[sector-LogSectorSize:sector], d.Data, e.SequenceNumber)
		}
	}
	if sector != len(dst) || uint64(sector) > math.MaxUint32 {
		return errf(name, 8, "entry of %#x bytes, but room for %#x", sector, len(dst))
	}
	e.EntryLength, e.DescriptorCount = uint32(len(dst)), uint32(len(e.Descriptors))
	e.encodeHeader(dst)
	le.PutUint32(dst[logChecksumField:], Checksum(dst, logChecksumField))
	return nil
}

func encodeData(descriptor, sector, page []byte, sequence uint64) {
	signature(descriptor, signatureDataDescriptor)
	copy(descriptor[4:4+dataTrailing], page[dataMiddleEnd:])
	copy(descriptor[8:8+dataLeading], page)
	signature(sector, signatureDataSector)
	le.PutUint32(sector[4:], uint32(sequence>>32))
	copy(sector[dataLeading:dataMiddleEnd], page[dataLeading:dataMiddleEnd])
	le.PutUint32(sector[dataMiddleEnd:], uint32(sequence))
}

// encodeHeader writes all fields but the checksum.
func (h *LogEntryHeader) encodeHeader(dst []byte) {
	signature(dst, signatureLogEntry)
	le.PutUint32(dst[8:], h.EntryLength)
	le.PutUint32(dst[12:], h.Tail)
	le.PutUint64(dst[16:], h.SequenceNumber)
	le.PutUint32(dst[24:], h.DescriptorCount)
	copy(dst[32:48], h.LogGUID[:])
	le.PutUint64(dst[48:], h.FlushedFileOffset)
	le.PutUint64(dst[56:], h.LastFileOffset)
}
