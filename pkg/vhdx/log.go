package vhdx

import (
	"fmt"
	"maps"
	"slices"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/deathpoint"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// page is a 4 KiB page of metadata and its place in the file.
type page struct {
	off  int64
	data []byte
}

// logEntry is an entry in the ring.
type logEntry struct {
	sequence uint64
	pos      uint32
	length   uint32
}

// logWriter writes the log of a session. Write order of every metadata change:
//
//	payload -> entry -> sync -> apply -> sync -> entry with a later Tail -> sync -> reuse
//
// The first sync is the guest's flush. Applying is lazy and rides on later
// flushes' syncs, so that in the steady state a flush costs one. All fields are
// guarded by Image.committing.
type logWriter struct {
	offset   int64
	length   uint32
	guid     ondisk.GUID
	sequence uint64 // of the last entry written
	head     uint32 // where the next entry goes; 0: it begins a lap

	entries []logEntry // in the ring, oldest first: what may not be overwritten
	synced  uint64     // entries up to this number are durable
	applied uint64     // pages of entries up to this number are in their place
	settled uint64     // the same, durably
	tailed  uint64     // settled when the last entry was written: what its Tail passes

	// logged holds the newest logged copy of every page that is not in its
	// place yet. Only copies are applied, never live pages (I-LOG-5).
	logged map[int64][]byte
	spare  [][]byte // page buffers for reuse

	lapFirst uint64     // number of the first entry of this lap
	outlived []outlived // places of metadata that has moved
	buf      []byte     // an entry being encoded
	descs    []ondisk.LogDescriptor
}

// A lap of the ring uses its sectors but the first and the last, and no entry
// reaches around the end. That and a sector of zeros behind a lap's first entry
// keep QEMU's search, which ignores Tails and does not compare the first two
// entries of a run, from running in circles or into the last lap.
const (
	lapStart  = ondisk.LogSectorSize
	lapMargin = ondisk.LogSectorSize // the last sector
	// emptyEntry is the length of an entry without pages; each lap has room
	// for one at its end.
	emptyEntry = ondisk.LogSectorSize
)

// endsLap reports whether an entry of this length has to begin a new lap.
func (l *logWriter) endsLap(length int) bool {
	return int64(l.head)+int64(length)+emptyEntry+lapMargin > int64(l.length)
}

// overwrites reports whether [pos, pos+length) of the ring still belongs to an
// entry that a replay may need.
func (l *logWriter) overwrites(pos uint32, length int) bool {
	return slices.ContainsFunc(l.entries, func(e logEntry) bool {
		return e.pos < pos+uint32(length) && pos < e.pos+e.length
	})
}

func (l *logWriter) used() uint32 {
	var n uint32
	for _, e := range l.entries {
		n += e.length
	}
	return n
}

// maxPages is how many pages one entry may carry: a whole lap has room for it,
// the zeros behind it and an empty one, and its descriptors fit into its first
// sector, for QEMU reads no others.
func (l *logWriter) maxPages() int {
	return min(ondisk.MaxLogPages(l.length-lapStart-lapMargin-emptyEntry), ondisk.DescriptorsInFirstSector)
}

// tail is the oldest entry whose pages are not durably in their place; from it
// a replay starts. The entry about to be written is its own tail if all are.
func (l *logWriter) tail() uint32 {
	for _, e := range l.entries {
		if e.sequence > l.settled {
			return e.pos
		}
	}
	return l.head
}

// appendEntry writes an entry with pages, whose data the log takes copies of. It is
// durable after the next sync, which the caller follows with markSynced.
// Precondition: the ring has room for it.
func (im *Image) appendEntry(pages []page) error {
	l := &im.log
	first := l.head == 0
	if first {
		l.head, l.lapFirst = lapStart, l.sequence+1
	}
	l.descs = l.descs[:0]
	for _, p := range pages {
		l.descs = append(l.descs, ondisk.LogDescriptor{FileOffset: uint64(p.off), Length: ondisk.PageSize, Data: l.keep(p)})
	}
	length := ondisk.LogEntryLength(len(pages), len(pages))
	im.space.mu.Lock()
	size := uint64(im.space.end)
	im.space.mu.Unlock()
	e := ondisk.LogEntry{
		LogEntryHeader: ondisk.LogEntryHeader{
			Tail: l.tail(), SequenceNumber: l.sequence + 1, LogGUID: l.guid,
			FlushedFileOffset: size, LastFileOffset: size,
		},
		Descriptors: l.descs,
	}
	if cap(l.buf) < length+ondisk.LogSectorSize {
		l.buf = alignedBytes(length + ondisk.LogSectorSize)
	}
	buf := l.buf[:length]
	if err := e.Encode(buf); err != nil {
		return im.poisonWith(err)
	}
	if _, err := ondisk.DecodeLogEntry(buf, l.length); err != nil {
		return im.poisonWith(fmt.Errorf("log entry does not read back as it was encoded: %w", err))
	}
	if first {
		buf = l.buf[:length+ondisk.LogSectorSize]
		clear(buf[length:])
	}
	if err := im.writeMetadata(buf, l.offset+int64(l.head)); err != nil {
		return err
	}
	l.sequence++
	l.tailed = l.settled
	l.entries = append(l.entries, logEntry{l.sequence, l.head, uint32(length)})
	l.head += uint32(length)
	return nil
}

// keep stores the copy of a page that is logged.
func (l *logWriter) keep(p page) []byte {
	kept, ok := l.logged[p.off]
	if !ok {
		if n := len(l.spare); n > 0 {
			kept, l.spare = l.spare[n-1], l.spare[:n-1]
		} else {
			kept = make([]byte, ondisk.PageSize)
		}
		l.logged[p.off] = kept
	}
	copy(kept, p.data)
	return kept
}

// outlived is a place that entries up to a number may name.
type outlived struct {
	extent
	sequence uint64
}

// retire gives up a place of metadata that a durable entry has moved away. A
// replay of older entries writes to it: it stays unused until a lap has begun
// that names it no more, for QEMU replays whole laps.
func (l *logWriter) retire(e extent) { l.outlived = append(l.outlived, outlived{e, l.sequence}) }

// takeOutlived returns the places that no replay writes to any more.
func (l *logWriter) takeOutlived() []extent {
	var unused []extent
	l.outlived = slices.DeleteFunc(l.outlived, func(o outlived) bool {
		gone := o.sequence < l.lapFirst && l.lapFirst <= l.synced
		if gone {
			unused = append(unused, o.extent)
		}
		return gone
	})
	return unused
}

// markSynced notes that a sync has succeeded: entries written before it are
// durable, pages applied before it are in their place, and the space before
// the newest durable entry's Tail is free (I-LOG-4).
func (l *logWriter) markSynced() {
	l.synced = l.sequence
	l.entries = slices.DeleteFunc(l.entries, func(e logEntry) bool { return e.sequence <= l.tailed })
	if len(l.logged) == 0 {
		l.applied = l.sequence // what is not in its place has no pages
	}
	l.settled = l.applied
}

// apply writes the logged copies to their places, neighbours together. They
// are there durably after the next sync. Precondition: their entries are
// durable.
func (im *Image) apply() error {
	l := &im.log
	if l.applied == l.synced && len(l.logged) == 0 {
		return nil
	}
	offsets := slices.Sorted(maps.Keys(l.logged))
	for len(offsets) > 0 {
		n := 1
		for n < len(offsets) && n < applyRun && offsets[n] == offsets[n-1]+ondisk.PageSize {
			n++
		}
		run := alignedBytes(n * ondisk.PageSize)
		for i, off := range offsets[:n] {
			data := l.logged[off]
			if im.opts.omit.has(orderApplyCopy) {
				im.livePage(data, off)
			}
			copy(run[i*ondisk.PageSize:], data)
			l.spare = append(l.spare, data)
			delete(l.logged, off)
		}
		if err := im.writeMetadata(run, offsets[0]); err != nil {
			return err
		}
		deathpoint.Reach(deathpoint.Applying)
		offsets = offsets[n:]
	}
	deathpoint.Reach(deathpoint.Applied)
	l.applied = l.synced
	return nil
}

// applyRun bounds how many pages are applied in one write.
const applyRun = 256

// livePage is for the test that applying live pages is wrong.
func (im *Image) livePage(data []byte, off int64) {
	if b := im.bat.Load(); off >= b.offset && off < b.offset+b.length {
		b.encodePage(data, (off-b.offset)/ondisk.PageSize)
	}
}

// settle puts everything logged in its place, durably.
func (im *Image) settle() error {
	if im.opts.omit.has(orderLogThenApply) {
		im.log.synced = im.log.sequence
	} else if im.log.synced < im.log.sequence {
		if err := im.syncLog(syncCommit); err != nil {
			return err
		}
	}
	if err := im.apply(); err != nil {
		return err
	}
	return im.syncLog(syncApply)
}

// newLap makes the next entry, of this length, the first of a lap. No Tail
// reaches back into the last lap, for QEMU replays the newest lap alone. That
// costs one sync a lap; a second one where the lap's start still belongs to a
// sequence that a replay may need: an empty entry then ends it.
func (im *Image) newLap(length int) error {
	if err := im.settle(); err != nil {
		return err
	}
	if im.log.overwrites(lapStart, length+ondisk.LogSectorSize) {
		im.log.head = im.log.length - lapMargin - emptyEntry // where no first entry reaches; it is its own Tail
		if err := im.appendEntry(nil); err != nil {
			return err
		}
		if err := im.syncLog(syncTail); err != nil {
			return err
		}
	}
	im.log.head = 0
	deathpoint.Reach(deathpoint.LapEnded)
	return nil
}

func (im *Image) syncLog(b barrier) error {
	if err := im.sync(b); err != nil {
		return err
	}
	im.headers.unsynced = false
	im.log.markSynced()
	return nil
}
