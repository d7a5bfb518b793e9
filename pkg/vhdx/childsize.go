package vhdx

import (
	"context"
	"fmt"
	"maps"
	"sync/atomic"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// Where the disk of a differencing image ends, its parent's may go on. What
// lies there is no part of the child, and does not become one when it grows:
// new space reads zero. So a growth hides what the parent would show: blocks
// become ZERO, and the rest of the block that the disk ended in gets zeros of
// its own. (MS-VHDX says nothing of it; another program that grows the child
// shows what it likes.) At rest, nothing is left in the table of blocks beyond
// the end, nor of their bits.

// coverTail makes the block that a disk of size old ends in read zero behind
// that end, up to the next one, whatever another program left in its place and
// whatever the parent shows. Until the size is logged nobody sees it.
func (im *Image) coverTail(old, size int64) error {
	if old&(im.blockSize-1) == 0 {
		return nil
	}
	if err := im.clearRest(old); err != nil {
		return err
	}
	below := im.below.Load()
	if below == nil {
		return nil
	}
	switch im.payload(old >> im.blockShift).State() {
	case ondisk.BlockNotPresent, ondisk.BlockPartiallyPresent:
	default:
		return nil
	}
	end := min(size, roundUp(old, im.blockSize), below.layers[0].size.Load())
	if end <= old {
		return nil
	}
	if err := im.claimZeros(old, end-old); err != nil {
		return fmt.Errorf("%s: hide what its parent holds at %#x: %w", im.name, old, err)
	}
	return nil
}

// clearRest zeroes what follows the end in its block, unless it is zero.
func (im *Image) clearRest(end int64) error {
	pin := im.pins.enter()
	defer im.pins.leave(pin)
	e := im.payload(end >> im.blockShift)
	if !present(e) {
		return nil
	}
	buf, done := borrowMiB()
	defer done()
	blank, err := im.blankRange(context.Background(), e.Offset()+end&(im.blockSize-1), e.Offset()+im.blockSize, buf)
	if err != nil || blank {
		return err
	}
	return im.zeroRest(end)
}

// claimZeros makes whole sectors behind the end of the disk, in one block, the
// image's own. Their place reads zero: it is new, or clearRest has been there.
// One is written, for I-MAP-1.
func (im *Image) claimZeros(off, n int64) error {
	r := Resolution{im: im, pin: im.pins.enter()}
	at, err := im.placeForWrite(off, n, &r)
	if err != nil {
		r.Abort()
		return err
	}
	lss := int64(im.metadata.logicalSectorSize)
	r.Extents = []Extent{{Offset: off, Length: lss, FileOffset: at}}
	return im.writeResolved(zeros[:lss], &r)
}

// hideParent makes the new blocks of a disk that grows read zero where the
// parent would show, and takes from all of them what another program left in
// the last chunk of the old table. Pages of a table that moves, and is written
// as a whole, need not be logged. Caller holds committing; nobody else is
// there yet.
func (im *Image) hideParent(old *bat, moved bool) {
	below := im.below.Load()
	if below == nil {
		return
	}
	b, s := im.bat.Load(), &im.space
	hidden := (below.layers[0].size.Load() + im.blockSize - 1) >> im.blockShift
	last := min(b.geometry.PayloadBlocks(), max(hidden, old.geometry.BitmapBlocks()*old.geometry.ChunkRatio()))
	for block := old.geometry.PayloadBlocks(); block < last; block++ {
		index := b.payloadIndex(block)
		was, is := b.at(index), ondisk.BATEntry(0)
		if block < hidden {
			is = ondisk.MakeBATEntry(ondisk.BlockZero, 0)
		}
		if moved && index >= int64(len(old.entries)) {
			atomic.StoreUint64(&b.entries[index], uint64(is))
			continue
		}
		b.set(index, is)
		if was.Offset() > 0 {
			s.mu.Lock()
			im.retire(extent{was.Offset(), im.blockSize})
			s.mu.Unlock()
		}
	}
}

// forgetBeyond takes what lies beyond the smaller size, which is durable, out
// of the tables. Should it not come to that, nothing reads it.
func (im *Image) forgetBeyond(size int64) error {
	im.committing.Lock()
	defer im.committing.Unlock()
	b := im.bat.Load()
	g := im.metadata.geometry(size)
	var bitmaps []extent
	if g.HasParent {
		bitmaps = im.dropEntries(b, g)
		if err := im.commitLocked(); err != nil { // a growth does not log what is zero in its new pages
			return err
		}
	}
	im.swapBAT(g, b.offset, b.length)
	if im.fixedEnd > 0 {
		im.fixedEnd = min(im.fixedEnd, im.usedEnd()+im.missing()*im.blockSize)
	}
	for _, e := range bitmaps {
		im.retireMetadata(e)
	}
	im.forgetBits(g.BitmapBlocks())
	return nil
}

// forgetBits forgets what was to become of the sector bitmaps from a chunk on.
func (im *Image) forgetBits(from int64) {
	s := &im.space
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.dirtyBits, func(page int64, _ struct{}) bool { return page/pagesPerBitmap >= from })
	maps.DeleteFunc(s.bitmaps, func(chunk, off int64) bool {
		if chunk < from {
			return false
		}
		s.release(extent{off, ondisk.BitmapBlockSize}) // never used: still proven zero
		return true
	})
}

// dropEntries clears the entries and bits beyond the end of a smaller disk, and
// returns the places of sector bitmaps that it has no use for.
func (im *Image) dropEntries(b *bat, g ondisk.Geometry) (bitmaps []extent) {
	s := &im.space
	s.mu.Lock()
	defer s.mu.Unlock()
	for block := g.PayloadBlocks(); block < b.entriesEnd(); block++ {
		if index := b.payloadIndex(block); b.at(index) != 0 {
			b.set(index, 0)
		}
	}
	for chunk := g.BitmapBlocks(); chunk < b.geometry.BitmapBlocks(); chunk++ {
		index := b.geometry.BitmapIndex(chunk)
		if e := b.at(index); e != 0 {
			b.set(index, 0)
			bitmaps = append(bitmaps, extent{e.Offset(), ondisk.BitmapBlockSize})
		}
	}
	im.clearBitsBeyond(b, g.VirtualSize)
	return bitmaps
}

// bitsBeyond are the sectors of the chunk that a disk ends in behind that end.
func (im *Image) bitsBeyond(b *bat, size int64) sectors {
	return im.sectorsOf(size, roundUp(size, b.geometry.ChunkRatio()*im.blockSize)-size)
}

// loadBitsBeyond reads the pages of the sector bitmap that have bits set behind
// the end of a smaller disk, where nobody sets any more: once that size is
// durable nothing may fail. Other pages need no clearing.
func (im *Image) loadBitsBeyond(size int64) error {
	b := im.bat.Load()
	if !b.geometry.HasParent {
		return nil
	}
	beyond := im.bitsBeyond(b, size)
	entry := b.at(b.geometry.BitmapIndex(min(beyond.first/sectorsPerChunk, b.geometry.BitmapBlocks()-1)))
	if beyond.count == 0 || entry.State() != ondisk.BitmapPresent {
		return nil // what memory has of it is loaded
	}
	room, done := borrowMiB()
	defer done()
	from := beyond.first % sectorsPerChunk / bitsPerPage * ondisk.PageSize
	bits := room[from:ondisk.BitmapBlockSize]
	if err := readFull(im.f, bits, entry.Offset()+from); err != nil {
		return corruptRead(im.f, fmt.Sprintf("sector bitmap of chunk %d", beyond.first/sectorsPerChunk), entry.Offset()+from, err)
	}
	return beyond.eachPage(func(number, bit, n int64) error {
		p := new(bitmapPage)
		p.decode(room[number%pagesPerBitmap*ondisk.PageSize:])
		if set, run := p.run(bit, n); set || run < n {
			b.keepPage(number, p)
		}
		return nil
	})
}

// clearBitsBeyond clears what loadBitsBeyond has found. Caller holds space.mu.
func (im *Image) clearBitsBeyond(b *bat, size int64) {
	_ = im.bitsBeyond(b, size).eachPage(func(number, bit, n int64) error { // the closure never fails
		p := b.loadedPage(number)
		if p == nil {
			return nil
		}
		if set, run := p.run(bit, n); set || run < n {
			p.change(bit, n, false)
			im.space.dirtyBits[number] = struct{}{}
		}
		return nil
	})
}
