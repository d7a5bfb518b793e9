package vhdx

import (
	"github.com/csi-vhdx/csi-driver-vhdx/internal/deathpoint"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// written is a range inside one block whose payload a write puts in the file
// and whose mapping it publishes afterwards.
type written struct {
	claim  *claim // space for a block that has none; nil: it has
	block  int64
	off, n int64 // of the virtual disk
	whole  bool  // it covers the block, or all of it that the disk had
}

// prepare makes sure that publishing a write to a block that may end partially
// present needs neither space nor I/O.
func (im *Image) prepare(w *written) error {
	b := im.bat.Load()
	start := w.block << im.blockShift
	w.whole = w.off == start && w.off+w.n >= min(start+im.blockSize, b.geometry.VirtualSize)
	if w.whole {
		return nil
	}
	switch b.payload(w.block).State() {
	case ondisk.BlockPartiallyPresent:
	case ondisk.BlockNotPresent:
		if err := im.ensureBitmap(b, w.block/b.geometry.ChunkRatio()); err != nil {
			return err
		}
	default:
		return nil
	}
	return im.loadBits(b, im.sectorsOf(start, im.blockSize))
}

// publishNew puts a claimed block into the table. In a differencing image a
// block that was the parent's so far becomes partially present, with no sector
// of its own yet. Each step is journalled, then made, and leaves the disk as
// readers saw it before. Caller holds space.mu.
func (im *Image) publishNew(b *bat, w *written) error {
	state := ondisk.BlockFullyPresent
	if b.payload(w.block).State() == ondisk.BlockNotPresent && im.metadata.params.HasParent && !w.whole {
		state = ondisk.BlockPartiallyPresent
		if err := im.publishBitmap(b, w.block/b.geometry.ChunkRatio()); err != nil {
			return err
		}
	}
	if state == ondisk.BlockPartiallyPresent && !im.opts.omit.has(orderClearStale) {
		// Bits of a block in any other state mean nothing and may be stale.
		im.markBits(b, im.sectorsOf(w.block<<im.blockShift, im.blockSize), false)
	}
	deathpoint.Reach(deathpoint.PayloadWritten)
	index := b.payloadIndex(w.block)
	anchor := b.at(index).Offset()
	if err := im.setEntry(b, index, ondisk.MakeBATEntry(state, w.claim.off)); err != nil {
		return err
	}
	if anchor > 0 {
		im.retire(extent{anchor, im.blockSize}) // of an UNMAPPED or UNDEFINED block
	}
	return nil
}

// publishBitmap puts a chunk's sector bitmap into the table.
func (im *Image) publishBitmap(b *bat, chunk int64) error {
	index := b.geometry.BitmapIndex(chunk)
	if b.at(index).State() == ondisk.BitmapPresent {
		return nil
	}
	if err := im.setEntry(b, index, ondisk.MakeBATEntry(ondisk.BitmapPresent, im.space.bitmaps[chunk])); err != nil {
		return err
	}
	delete(im.space.bitmaps, chunk)
	return nil
}

// setEntry journals an entry of the table, then changes it (I-JRN-1).
func (im *Image) setEntry(b *bat, index int64, e ondisk.BATEntry) error {
	if err := im.record(JournalRecord{Kind: JournalMapped, Entry: uint64(index), Value: uint64(e)}); err != nil {
		return err
	}
	deathpoint.Reach(deathpoint.MappingRecorded)
	b.set(index, e)
	return nil
}

// publishBits says that the sectors of a write are in this file. A block that
// lacks none any more becomes fully present. Caller holds space.mu.
func (im *Image) publishBits(b *bat, w *written) error {
	e := b.payload(w.block)
	if e.State() != ondisk.BlockPartiallyPresent {
		return nil
	}
	start := w.block << im.blockShift
	if !w.whole && !im.allPresent(b, w.off, w.n) {
		s := im.sectorsOf(w.off, w.n)
		if err := im.record(JournalRecord{Kind: JournalBits, Entry: uint64(s.first), Value: uint64(s.count)}); err != nil {
			return err
		}
		im.markBits(b, s, true)
	}
	if w.whole || im.allPresent(b, start, min(im.blockSize, b.geometry.VirtualSize-start)) {
		return im.setEntry(b, b.payloadIndex(w.block), ondisk.MakeBATEntry(ondisk.BlockFullyPresent, e.Offset()))
	}
	return nil
}

// logDirtyLayer is logDirty for a differencing image. Order:
//
//	copy BAT and bitmap pages -> sync -> bitmap pages, then BAT pages in
//	descending order, in the log
//
// The copies are taken first: a bit set after the sync would be logged before
// its data is durable. They are taken under space.mu, so that no block is in
// them as partially present without its bits. A replay that ends between two
// entries then finds for each partially present block its bits, and for each
// chunk its bitmap's entry, which comes behind those of its blocks. Of very many
// pages the last ones come first, with all bits, and then it begins anew: what
// has become dirty meanwhile is in its order, too.
func (im *Image) logDirtyLayer() error {
	for more := true; more; {
		im.space.mu.Lock()
		var pages []page
		pages, more = im.dirtyPages()
		im.space.mu.Unlock()
		if len(pages) == 0 {
			return nil
		}
		if err := im.syncLog(syncData); err != nil {
			return err
		}
		if err := im.logInOrder(pages); err != nil {
			return err
		}
	}
	return nil
}

// maxCopied is how many pages of the table are copied at once: 2 MiB. The
// table of a disk of 64 TiB is half a GiB.
const maxCopied = 512

// logBitmaps logs the bitmap pages alone, for a table that does not go through
// the log.
func (im *Image) logBitmaps() error {
	if !im.metadata.params.HasParent {
		return nil
	}
	im.space.mu.Lock()
	pages := im.dirtyBitmaps(nil)
	im.space.mu.Unlock()
	if len(pages) == 0 {
		return nil
	}
	if err := im.syncLog(syncData); err != nil {
		return err
	}
	return im.logInOrder(pages)
}

func (im *Image) logInOrder(pages []page) error {
	for len(pages) > 0 {
		n := min(len(pages), im.log.maxPages())
		if err := im.logPages(pages[:n]); err != nil {
			return err
		}
		pages = pages[n:]
	}
	return nil
}

// dirtyPages copies dirty pages in the order in which they are logged, and
// reports whether there may be more. Caller holds space.mu.
func (im *Image) dirtyPages() (pages []page, more bool) {
	pages = im.dirtyBitmaps(nil)
	b := im.bat.Load()
	bitmaps := len(pages)
	limit := maxCopied
	if im.opts.maxCopied > 0 {
		limit = im.opts.maxCopied
	}
	dirty := b.takeDirtyFromEnd(limit)
	for _, number := range dirty {
		p := page{b.pageOffset(number), make([]byte, ondisk.PageSize)}
		b.encodePage(p.data, number)
		pages = append(pages, p)
	}
	if im.opts.omit.has(orderBitsThenTable) {
		pages = append(pages[bitmaps:len(pages):len(pages)], pages[:bitmaps]...)
	}
	return pages, len(dirty) == limit
}

// dirtyBitmaps appends copies of the dirty bitmap pages. Caller holds space.mu.
func (im *Image) dirtyBitmaps(pages []page) []page {
	b := im.bat.Load()
	for number := range im.space.dirtyBits {
		chunk := number / pagesPerBitmap
		e := b.at(b.geometry.BitmapIndex(chunk))
		if e.State() != ondisk.BitmapPresent {
			continue // nothing refers to it yet
		}
		p := page{e.Offset() + number%pagesPerBitmap*ondisk.PageSize, make([]byte, ondisk.PageSize)}
		b.loadedPage(number).encode(p.data)
		pages = append(pages, p)
		delete(im.space.dirtyBits, number)
	}
	return pages
}
