package vhdx

import (
	"fmt"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// loadChunk is how many bytes of the table are read at once, straight to where
// they stay.
const loadChunk = 4 << 20

// readEntries reads the table into b, judges each entry and claims its space.
func (im *Image) readEntries(b *bat, l *layout) error {
	n := int64(len(b.entries))
	pages := b.entries[:cap(b.entries)]
	load := batLoad{im: im, b: b, l: l, next: noRun, bitmap: b.geometry.ChunkRatio()}
	for first := int64(0); first < n; first += loadChunk / ondisk.BATEntrySize {
		off := b.offset + first*ondisk.BATEntrySize
		end := first + loadChunk/ondisk.BATEntrySize
		if err := readWords(im.f, pages[first:min(end, int64(len(pages)))], off); err != nil {
			return corruptRead(im.f, "BAT", off, err)
		}
		if err := load.chunk(first, min(end, n)); err != nil {
			return err
		}
	}
	return load.flush(n)
}

// batLoad is the reading of a table. A disk that was written in order has its
// blocks in the file in that order: their space is claimed a run at a time, or
// the largest tables would take most of the time that an open has.
type batLoad struct {
	im *Image
	b  *bat
	l  *layout

	bitmap int64  // index of the next sector bitmap entry
	first  int64  // index of the run's first entry
	off    int64  // of the run in the file
	length int64  // of the run
	next   uint64 // the entry that goes on with it; noRun: there is none
}

// chunk judges the entries [first, end).
func (r *batLoad) chunk(first, end int64) error {
	step := uint64(r.b.geometry.BlockSize)
	for index := first; index < end; index++ {
		e := r.b.entries[index]
		bitmap := index == r.bitmap
		if bitmap {
			r.bitmap += r.b.geometry.ChunkRatio() + 1
		}
		if e == 0 { // claims nothing, and so ends no run
			if !bitmap {
				index += int64(zeroLength(r.b.entries[index:min(end, r.bitmap)])) - 1
			}
			continue
		}
		if e == r.next && !bitmap {
			n := int64(runLength(r.b.entries[index:min(end, r.bitmap)], e, step))
			r.next += uint64(n) * step
			r.length += n * int64(step)
			index += n - 1
			continue
		}
		if err := r.flush(index); err != nil {
			return err
		}
		if err := r.single(index, ondisk.BATEntry(e)); err != nil {
			return err
		}
		if ondisk.BATEntry(e).State() == ondisk.BlockFullyPresent && !bitmap {
			r.first, r.off, r.length, r.next = index+1, ondisk.BATEntry(e).Offset()+int64(step), 0, e+step
		}
	}
	return nil
}

// single judges one entry, and keeps it as it is to be.
func (r *batLoad) single(index int64, e ondisk.BATEntry) error {
	kept, err := r.l.place(r.b.geometry, index, e)
	if err != nil {
		return corrupt(r.im.f, fmt.Sprintf("BAT entry %d", index), r.b.offset+index*ondisk.BATEntrySize, err)
	}
	r.b.entries[index] = uint64(kept)
	return nil
}

// flush claims the space of the run, which ends before the entry at end. If
// some of it is somebody else's, or lies beyond the file's end, block after
// block, to say whose fault it is.
func (r *batLoad) flush(end int64) error {
	off, length := r.off, r.length
	r.length, r.next = 0, noRun
	if length == 0 {
		return nil
	}
	if r.l.mark(off, length) == nil {
		return nil
	}
	for index := r.first; index < end; index++ {
		if e := ondisk.BATEntry(r.b.entries[index]); e != 0 {
			if err := r.single(index, e); err != nil {
				return err
			}
		}
	}
	return nil
}
