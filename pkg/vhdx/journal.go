package vhdx

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/deathpoint"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// Journal is the volatile journal: it outlives the process, not the power.
//
// A request is answered before its metadata reaches the log on disk. If only
// the process dies, the guest has dropped its copy and will read the data
// again, so whatever makes the data readable must be in the Journal first.
// Order per request: payload I/O returns, Record returns, the page in memory
// changes, the request is answered. A successor that opens the image with the
// same Journal replays the log on disk, applies the records as dirty pages and
// commits them (I-JRN-1 to 4).
//
// Without a Journal the death of the process counts as a power cut: what was
// not flushed reads old or new. [Ring] is the implementation on shared memory.
type Journal interface {
	// Pending returns what an earlier process left.
	Pending() (JournalState, error)
	// Announce names the FileWriteGuids by which the image may be recognised
	// from now on: the present one and the one about to replace it.
	Announce(present, next [16]byte) error
	// Record keeps r. [ErrJournalFull] makes the image commit and try again.
	// Calls come one at a time and in the order of r.Seq.
	Record(r JournalRecord) error
	// Dropped says that all records up to and including seq are in the
	// durable log and need not be kept.
	Dropped(seq uint64)
	// Reset drops every record: the image has been closed cleanly. By what it
	// is recognised stays, for its device may outlive the close.
	Reset() error
}

// JournalState is what a [Journal] holds of an image whose server has died.
type JournalState struct {
	// Active: the image has been open; FileWriteGUIDs then names the values
	// that its header may carry unless someone else has written to it since.
	Active         bool
	FileWriteGUIDs [2][16]byte
	// Poisoned: the server had refused to write on.
	Poisoned bool
	// LastSeq numbers the last record ever kept.
	LastSeq uint64
	// Records not dropped, oldest first.
	Records []JournalRecord
}

// JournalRecord is one change that the log on disk does not hold yet.
type JournalRecord struct {
	Seq  uint64
	Kind JournalKind
	// Entry is the index of the changed BAT entry, Value what it became
	// (JournalMapped, JournalUnmapped).
	Entry uint64
	Value uint64
}

// JournalKind says what a [JournalRecord] changes.
type JournalKind uint8

// The kinds of record. Sector bitmap and head records join them with
// differencing images.
const (
	JournalMapped   JournalKind = iota + 1 // a block has got space
	JournalPoisoned                        // nothing is written any more
	JournalUnmapped                        // a block has lost its space
)

// ErrTakenOver: somebody else has opened the image for writing since the
// server of a device died. What the journal holds belongs to a file that is no
// more, and nothing is applied.
var ErrTakenOver = errors.New("image was opened by someone else since its server died")

// openJournal reads what a predecessor left and makes sure that the file is
// still the one it wrote (I-JRN-3).
func (im *Image) openJournal() error {
	if im.opts.Journal == nil {
		return nil
	}
	if im.opts.ReadOnly {
		return fmt.Errorf("%s: a journal with a read-only open: %w", im.name, ErrInvalid)
	}
	state, err := im.opts.Journal.Pending()
	if err != nil {
		return fmt.Errorf("%s: volatile journal: %w", im.name, err)
	}
	im.journalSeq = state.LastSeq
	now := [16]byte(im.headers.current.FileWriteGUID)
	if !state.Active {
		return im.opts.Journal.Announce(now, now)
	}
	if now != state.FileWriteGUIDs[0] && now != state.FileWriteGUIDs[1] {
		return fmt.Errorf("%s: FileWriteGuid is %v, the journal of %d records belongs to %v: %w",
			im.name, im.headers.current.FileWriteGUID, len(state.Records), ondisk.GUID(state.FileWriteGUIDs[0]), ErrTakenOver)
	}
	im.inherited = state
	return nil
}

// inherit makes the predecessor's records part of the table that has been
// read: before free space is counted, for it is theirs (I-JRN-2). The last
// record of an entry holds. Places that records took from blocks stay used
// until that is committed: on the medium they are the blocks' own.
func (im *Image) inherit(b *bat, l *layout) error {
	last, unmapped := map[uint64]JournalRecord{}, map[uint64]bool{}
	for _, r := range im.inherited.Records {
		if r.Kind == JournalPoisoned {
			continue
		}
		if err := im.checkRecord(b, r); err != nil {
			return err
		}
		last[r.Entry] = r
		unmapped[r.Entry] = unmapped[r.Entry] || r.Kind == JournalUnmapped
	}
	for _, index := range slices.Sorted(maps.Keys(last)) {
		r := last[index]
		now, e := b.at(int64(index)), ondisk.BATEntry(r.Value)
		if now == e {
			continue // its log entry was durable already
		}
		if now.State() == ondisk.BlockFullyPresent && !unmapped[index] {
			return fmt.Errorf("%s: volatile journal, record %d: BAT entry %d is %#x already, not %#x: %w", im.name, r.Seq, r.Entry, uint64(now), r.Value, ErrInvalid)
		}
		switch {
		case now.Offset() > 0 && im.opts.omit.has(orderInheritedStay):
			l.unmark(now.Offset(), im.blockSize)
		case now.Offset() > 0:
			im.space.retired = append(im.space.retired, extent{now.Offset(), im.blockSize})
		}
		if _, err := l.place(b.geometry, int64(index), e); err != nil {
			return fmt.Errorf("%s: volatile journal, record %d: %w", im.name, r.Seq, err)
		}
		b.set(int64(index), e)
	}
	return nil
}

// checkRecord refuses what this package never recorded.
func (im *Image) checkRecord(b *bat, r JournalRecord) error {
	e := ondisk.BATEntry(r.Value)
	ok := r.Entry < uint64(len(b.entries)) && !b.geometry.IsBitmap(int64(r.Entry))
	switch r.Kind {
	case JournalMapped:
		ok = ok && e.State() == ondisk.BlockFullyPresent
	case JournalUnmapped:
		ok = ok && e.Offset() == 0 && (e.State() == ondisk.BlockUnmapped || e.State() == ondisk.BlockZero)
	default:
		return fmt.Errorf("%s: volatile journal, record %d is of kind %d, which a newer program wrote: start that one: %w", im.name, r.Seq, r.Kind, ErrUnsupported)
	}
	if !ok {
		return fmt.Errorf("%s: volatile journal, record %d: BAT entry %d cannot become %#x: %w", im.name, r.Seq, r.Entry, r.Value, ErrInvalid)
	}
	return nil
}

// resume ends what openJournal began: what was answered is committed before
// anything new is served.
func (im *Image) resume() error {
	switch {
	case im.inherited.Poisoned:
		_ = im.poisonWith(errors.New("the server that died had refused to write on"))
		return nil
	case len(im.inherited.Records) == 0:
		return nil
	}
	deathpoint.Reach(deathpoint.RecordsInherited)
	if err := im.begin(); err != nil {
		return err
	}
	err := im.commit()
	deathpoint.Reach(deathpoint.TakeoverCommitted)
	return err
}
