package vhdx

import (
	"errors"
	"fmt"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// logReader finds the active sequence of a log (MS-VHDX 2.3.2). Every position
// is validated once; how many bytes that may take is bounded, for in a hostile
// log each sector can claim an entry as long as the log.
type logReader struct {
	f       File
	offset  int64
	length  uint32
	guid    ondisk.GUID
	found   map[uint32]ondisk.LogEntryHeader // valid entries by position
	bad     bitset                           // by sector
	budget  int64                            // bytes of entries that may still be validated
	window  []byte
	entry   []byte // for read
	room    []byte // for window
	done    func() // with room
	decoder ondisk.LogDecoder
	at      uint32 // position of window in the log
}

// maxLogEntry bounds the memory that a hostile log takes; nobody writes entries
// of a MiB. What may be the newest entry is refused, never skipped: an older
// sequence in its place would be stale.
const maxLogEntry = 4 << 20

// sequence is a run of entries, by position, oldest first.
type sequence struct {
	positions []uint32
	head      ondisk.LogEntryHeader
	tail      int // index in positions of the entry that head's Tail names
}

func newLogReader(f File, h ondisk.Header) *logReader {
	return &logReader{
		f: f, offset: int64(h.LogOffset), length: h.LogLength, guid: h.LogGUID,
		found: map[uint32]ondisk.LogEntryHeader{}, bad: newBitset(int64(h.LogLength) / ondisk.LogSectorSize),
		budget: 16 * int64(h.LogLength),
	}
}

// active returns the valid sequence with the greatest head sequence number, or
// false if there is none: with LogGuid set the file is corrupt then (I-LOG-2).
func (l *logReader) active() (sequence, bool, error) {
	var best sequence
	ok := false
	for start := uint32(0); start < l.length; {
		s, valid, err := l.sequenceAt(start)
		if err != nil {
			return sequence{}, false, err
		}
		next := start + ondisk.LogSectorSize
		if valid {
			if !ok || s.head.SequenceNumber > best.head.SequenceNumber {
				best, ok = s, true
			}
			last := s.positions[len(s.positions)-1]
			end := uint64(last) + uint64(s.head.EntryLength)
			if end >= uint64(l.length) || last < start {
				break // the ring has been scanned
			}
			next = uint32(end)
		}
		start = next
	}
	return best, ok, nil
}

// sequenceAt follows the entries from a position as long as each carries the
// next number, and at most once around the ring.
func (l *logReader) sequenceAt(start uint32) (sequence, bool, error) {
	var s sequence
	total := uint64(0)
	for pos := start; ; {
		h, ok, err := l.entryAt(pos)
		if err != nil {
			return s, false, err
		}
		if !ok || (len(s.positions) > 0 && h.SequenceNumber != s.head.SequenceNumber+1) {
			break
		}
		if total += uint64(h.EntryLength); total > uint64(l.length) {
			break
		}
		s.positions = append(s.positions, pos)
		s.head = h
		pos = uint32((uint64(pos) + uint64(h.EntryLength)) % uint64(l.length))
	}
	for i, pos := range s.positions {
		if pos == s.head.Tail {
			s.tail = i
			return s, true, nil
		}
	}
	return s, false, nil
}

// entryAt validates the entry at a position. Only I/O and the exhausted budget
// are errors.
func (l *logReader) entryAt(pos uint32) (ondisk.LogEntryHeader, bool, error) {
	if h, ok := l.found[pos]; ok {
		return h, true, nil
	}
	if l.bad.has(pos / ondisk.LogSectorSize) {
		return ondisk.LogEntryHeader{}, false, nil
	}
	sector, err := l.sector(pos)
	if err != nil {
		return ondisk.LogEntryHeader{}, false, err
	}
	if !ondisk.MayBeLogEntry(sector) {
		l.bad.add(pos / ondisk.LogSectorSize)
		return ondisk.LogEntryHeader{}, false, nil
	}
	h, err := ondisk.DecodeLogEntryHeader(sector, l.length)
	if err == nil && h.LogGUID == l.guid {
		if h.EntryLength > maxLogEntry {
			return h, false, fmt.Errorf("%s: log entry of %#x bytes at %#x, at most %#x are accepted: %w", l.f.Name(), h.EntryLength, l.offset+int64(pos), maxLogEntry, ErrUnsupported)
		}
		if l.budget -= int64(h.EntryLength); l.budget < 0 {
			return h, false, corrupt(l.f, "log", l.offset+int64(pos), errors.New("its sectors claim entries that overlap over and over"))
		}
		_, err := l.read(pos, h.EntryLength)
		if err == nil {
			l.found[pos] = h
			return h, true, nil
		}
		if _, isFormat := errors.AsType[*ondisk.Error](err); !isFormat {
			return h, false, err
		}
	}
	l.bad.add(pos / ondisk.LogSectorSize)
	return ondisk.LogEntryHeader{}, false, nil
}

// release ends the use of l, but for what it found.
func (l *logReader) release() {
	if l.done != nil {
		l.done()
	}
	l.room, l.window, l.done = nil, nil, nil
}

// sector returns the sector at a position, through a window read ahead.
func (l *logReader) sector(pos uint32) ([]byte, error) {
	if l.room == nil {
		l.room, l.done = borrowMiB()
	}
	if pos < l.at || pos >= l.at+uint32(len(l.window)) {
		l.window, l.at = l.room[:min(ondisk.MiB, l.length-pos)], pos
		if err := readFull(l.f, l.window, l.offset+int64(pos)); err != nil {
			l.window = l.window[:0]
			return nil, corruptRead(l.f, "log", l.offset+int64(pos), err)
		}
	}
	return l.window[pos-l.at:][:ondisk.LogSectorSize], nil
}

// read reads and validates a whole entry, around the end of the ring if need
// be. It is good until the next one.
func (l *logReader) read(pos, length uint32) (ondisk.LogEntry, error) {
	if from := int64(pos) - int64(l.at); from >= 0 && from+int64(length) <= int64(len(l.window)) {
		return l.decode(l.window[from:][:length])
	}
	if cap(l.entry) < int(length) {
		l.entry = alignedBytes(max(int(length), min(2*cap(l.entry), maxLogEntry)))
	}
	b := l.entry[:length]
	first := min(length, l.length-pos)
	if err := readFull(l.f, b[:first], l.offset+int64(pos)); err != nil {
		return ondisk.LogEntry{}, corruptRead(l.f, "log entry", l.offset+int64(pos), err)
	}
	if first < length {
		if err := readFull(l.f, b[first:], l.offset); err != nil {
			return ondisk.LogEntry{}, corruptRead(l.f, "log entry", l.offset, err)
		}
	}
	return l.decode(b)
}

func (l *logReader) decode(b []byte) (ondisk.LogEntry, error) {
	e, err := l.decoder.Decode(b, l.length)
	if err != nil {
		return e, err
	}
	for _, d := range e.Descriptors {
		if int64(d.FileOffset) < l.offset+int64(l.length) && l.offset < int64(d.FileOffset)+int64(d.Length) {
			return e, &ondisk.Error{Structure: "log descriptor", Reason: fmt.Sprintf("file offset %#x lies in the log itself", d.FileOffset)}
		}
	}
	return e, nil
}
