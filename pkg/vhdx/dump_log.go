package vhdx

import "github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"

// DumpedLog is the log's ring (MS-VHDX 2.3).
type DumpedLog struct {
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
	GUID   string `json:"guid"` // all zero: the log is empty, and what lies in it is past
	// Problem says why the log cannot be replayed.
	Problem string `json:"problem,omitempty"`
}

// DumpedLogEntry is what a sector of the ring begins.
type DumpedLogEntry struct {
	Position          uint32 `json:"position"` // in the log
	SequenceNumber    uint64 `json:"sequenceNumber"`
	Length            uint32 `json:"length"`
	Tail              uint32 `json:"tail"`
	Descriptors       uint32 `json:"descriptors"`
	LogGUID           string `json:"logGUID"`
	FlushedFileOffset uint64 `json:"flushedFileOffset"`
	LastFileOffset    uint64 `json:"lastFileOffset"`
	// Active: a replay applies it.
	Active  bool           `json:"active"`
	Problem string         `json:"problem,omitempty"`
	Targets []DumpedTarget `json:"targets,omitempty"`
}

// DumpedTarget is what a descriptor of the log changes.
type DumpedTarget struct {
	Offset uint64 `json:"offset"`
	Length uint64 `json:"length"`
	Zero   bool   `json:"zero"`
}

// Log describes the ring.
func (d *Dump) Log() DumpedLog {
	h := d.c.im.headers.current
	log := DumpedLog{Offset: int64(h.LogOffset), Length: int64(h.LogLength), GUID: h.LogGUID.String()}
	if !h.LogGUID.IsZero() && !d.Dirty {
		log.Problem = d.c.r.Stopped
	}
	return log
}

// LogEntries calls visit with every entry in the ring, active or past, from a
// position on, until it returns false.
func (d *Dump) LogEntries(first uint32, visit func(DumpedLogEntry) bool) error {
	h := d.c.im.headers.current
	if err := h.Validate(); err != nil || h.LogLength == 0 {
		return d.need("log", false)
	}
	active := map[uint32]bool{}
	if d.Dirty {
		l := newLogReader(d.c.raw, h)
		s, ok, err := l.active()
		l.release()
		if err != nil {
			return err
		}
		if ok {
			for _, pos := range s.positions[s.tail:] {
				active[pos] = true
			}
		}
	}
	l := newLogReader(d.c.raw, h)
	defer l.release()
	for pos := first / ondisk.LogSectorSize * ondisk.LogSectorSize; pos < h.LogLength; {
		if err := d.c.ctx.Err(); err != nil {
			return err
		}
		e, ok, err := l.dumped(pos)
		if err != nil {
			return err
		}
		next := pos + ondisk.LogSectorSize
		if ok {
			e.Active = active[pos]
			if !visit(e) {
				return nil
			}
			if e.Problem == "" && uint64(pos)+uint64(e.Length) < uint64(h.LogLength) {
				next = pos + e.Length
			} else if e.Problem == "" {
				return nil // it wraps, or ends the ring
			}
		}
		pos = next
	}
	return nil
}

// dumped describes the entry at a position; false if none begins there.
func (l *logReader) dumped(pos uint32) (DumpedLogEntry, bool, error) {
	sector, err := l.sector(pos)
	if err != nil {
		return DumpedLogEntry{}, false, err
	}
	if string(sector[:4]) != ondisk.LogEntrySignature {
		return DumpedLogEntry{}, false, nil
	}
	h, err := ondisk.DecodeLogEntryHeader(sector, l.length)
	d := DumpedLogEntry{
		Position: pos, SequenceNumber: h.SequenceNumber, Length: h.EntryLength, Tail: h.Tail, Descriptors: h.DescriptorCount,
		LogGUID: h.LogGUID.String(), FlushedFileOffset: h.FlushedFileOffset, LastFileOffset: h.LastFileOffset,
	}
	if err != nil {
		d.Problem = reason(err)
		return d, true, nil
	}
	if l.budget -= int64(h.EntryLength); l.budget < 0 || h.EntryLength > maxLogEntry {
		d.Problem = "not read: the log's sectors claim entries that overlap over and over, or one too long"
		return d, true, nil
	}
	e, err := l.read(pos, h.EntryLength)
	switch {
	case err != nil && !isFormat(err):
		return d, false, err
	case err != nil:
		d.Problem = reason(err)
	}
	for _, t := range e.Descriptors {
		d.Targets = append(d.Targets, DumpedTarget{t.FileOffset, t.Length, t.Zero})
	}
	return d, true, nil
}
