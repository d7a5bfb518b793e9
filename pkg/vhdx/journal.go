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
	// (JournalMapped, JournalUnmapped); or Entry is a logical sector of the
	// disk, and so many from it on, Value, are in this file and not in the
	// parent (JournalBits).
	Entry uint64
	Value uint64
}

// JournalKind says what a [JournalRecord] changes.
type JournalKind uint8

// The kinds of record. A block that becomes partially present has no sector
// in its file before the JournalBits that follow.
const (
	JournalMapped   JournalKind = iota + 1 // a block, or a sector bitmap, has got space
	JournalPoisoned                        // nothing is written any more
	JournalUnmapped                        // a block has lost its space, or its parent's data
	JournalBits                            // sectors of a partially present block are there
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
		if r.Kind == JournalBits {
			continue
		}
		last[r.Entry] = r
		unmapped[r.Entry] = unmapped[r.Entry] || r.Kind == JournalUnmapped
	}
	for _, index := range slices.Sorted(maps.Keys(last)) {
		if err := im.inheritEntry(b, l, last[index], unmapped[index]); err != nil {
			return fmt.Errorf("%s: volatile journal, record %d: %w", im.name, last[index].Seq, err)
		}
	}
	return im.inheritBits(b)
}

// inheritEntry makes an entry of the table what its last record says.
func (im *Image) inheritEntry(b *bat, l *layout, r JournalRecord, unmapped bool) error {
	index := int64(r.Entry)
	now, e := b.at(index), ondisk.BATEntry(r.Value)
	// A partially present block becomes fully present where it is.
	promoted := !b.geometry.IsBitmap(index) && now.State() == ondisk.BlockPartiallyPresent && now.Offset() == e.Offset()
	switch {
	case now == e:
		return nil // its log entry was durable already
	case promoted && e.State() == ondisk.BlockFullyPresent:
		b.set(index, e)
		return nil
	case (present(now) || b.geometry.IsBitmap(index) && now != 0) && !unmapped:
		return fmt.Errorf("BAT entry %d is %#x already, not %#x: %w", r.Entry, uint64(now), r.Value, ErrInvalid)
	case now.Offset() > 0 && im.opts.omit.has(orderInheritedStay):
		l.used.clear(now.Offset(), im.blockSize)
	case now.Offset() > 0:
		im.space.retired = append(im.space.retired, extent{now.Offset(), im.blockSize})
	}
	if _, err := l.place(b.geometry, index, e); err != nil {
		return err
	}
	b.set(index, e)
	if b.geometry.IsBitmap(index) || e.State() != ondisk.BlockPartiallyPresent {
		return nil
	}
	return im.changeBits(b, im.sectorsOf(b.geometry.BlockOf(index)*im.blockSize, im.blockSize), false)
}

// inheritBits marks what records say of sectors. A block becomes partially
// present at most once, so the order of the two kinds of record is no matter.
func (im *Image) inheritBits(b *bat) error {
	for _, r := range im.inherited.Records {
		if r.Kind != JournalBits {
			continue
		}
		if err := im.changeBits(b, sectors{int64(r.Entry), int64(r.Value)}, true); err != nil {
			return err
		}
	}
	return nil
}

// checkRecord refuses what this package never recorded.
func (im *Image) checkRecord(b *bat, r JournalRecord) error {
	e, g := ondisk.BATEntry(r.Value), b.geometry
	ok := r.Entry < uint64(len(b.entries))
	bitmap := ok && g.IsBitmap(int64(r.Entry))
	switch r.Kind {
	case JournalMapped:
		ok = ok && (e.State() == ondisk.BlockFullyPresent && (!bitmap || g.HasParent) || // as is the state of a bitmap
			e.State() == ondisk.BlockPartiallyPresent && !bitmap && g.HasParent)
	case JournalUnmapped:
		ok = ok && !bitmap && e.Offset() == 0 && (e.State() == ondisk.BlockUnmapped || e.State() == ondisk.BlockZero)
	case JournalBits:
		size := uint64(len(b.bitmaps)) * sectorsPerChunk // a growth under way marks some beyond the end
		ok = r.Entry <= size && r.Value <= size-r.Entry
	default:
		return fmt.Errorf("%s: volatile journal, record %d is of kind %d, which a newer program wrote: start that one: %w", im.name, r.Seq, r.Kind, ErrUnsupported)
	}
	if !ok {
		return fmt.Errorf("%s: volatile journal, record %d: BAT entry %d cannot become %#x: %w", im.name, r.Seq, r.Entry, r.Value, ErrInvalid)
	}
	return nil
}

// changeBits marks bits at open: nobody else is there.
func (im *Image) changeBits(b *bat, s sectors, set bool) error {
	if err := im.loadBits(b, s); err != nil {
		return err
	}
	im.markBits(b, s, set)
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
