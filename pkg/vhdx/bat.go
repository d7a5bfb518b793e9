package vhdx

import (
	"encoding/binary"
	"math/bits"
	"sync/atomic"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

const entriesPerPage = ondisk.PageSize / 8

// bat is the block allocation table in memory: the truth from open to close.
// Entries are read without a lock; they change under space.mu. A changed
// entry's page is dirty until a commit copies it for the log.
type bat struct {
	geometry ondisk.Geometry
	offset   int64    // of the region in the file
	length   int64    // of the region
	ratio    uint     // log2 of the chunk ratio
	entries  []uint64 // ondisk.BATEntry, accessed atomically
	dirty    []uint64 // a bit per page, accessed atomically
	// bitmaps are the sector bitmaps of a differencing image by chunk, as far
	// as they have been read.
	bitmaps []atomic.Pointer[bitmapChunk]
}

func newBAT(g ondisk.Geometry, offset, length int64) *bat {
	n := g.Entries()
	pages := (n + entriesPerPage - 1) / entriesPerPage
	b := &bat{
		geometry: g, offset: offset, length: length,
		ratio:   uint(bits.TrailingZeros64(uint64(g.ChunkRatio()))),
		entries: newWords(pages * entriesPerPage)[:n], // whole pages can be read into it
		dirty:   make([]uint64, (pages+63)/64),
	}
	if g.HasParent {
		b.bitmaps = make([]atomic.Pointer[bitmapChunk], g.BitmapBlocks())
	}
	return b
}

func (b *bat) at(index int64) ondisk.BATEntry {
	return ondisk.BATEntry(atomic.LoadUint64(&b.entries[index]))
}

// set stores an entry, then marks its page: a commit that clears the mark
// first and copies the page after it cannot miss the entry.
func (b *bat) set(index int64, e ondisk.BATEntry) {
	atomic.StoreUint64(&b.entries[index], uint64(e))
	b.markDirty(index / entriesPerPage)
}

func (b *bat) markDirty(page int64) {
	atomic.OrUint64(&b.dirty[page/64], 1<<(page%64))
}

// takeDirty clears the marks of all dirty pages and appends their numbers to dst.
func (b *bat) takeDirty(dst []int64) []int64 {
	for i := range b.dirty {
		if atomic.LoadUint64(&b.dirty[i]) == 0 {
			continue
		}
		for w := atomic.SwapUint64(&b.dirty[i], 0); w != 0; w &= w - 1 {
			dst = append(dst, int64(i)*64+int64(bits.TrailingZeros64(w)))
		}
	}
	return dst
}

// takeDirtyFromEnd is takeDirty for at most limit pages, the last ones, in
// descending order.
func (b *bat) takeDirtyFromEnd(limit int) []int64 {
	var pages []int64
	for i := len(b.dirty) - 1; i >= 0 && len(pages) < limit; i-- {
		if atomic.LoadUint64(&b.dirty[i]) == 0 {
			continue
		}
		w := atomic.SwapUint64(&b.dirty[i], 0)
		for ; w != 0 && len(pages) < limit; w &^= 1 << (bits.Len64(w) - 1) {
			pages = append(pages, int64(i)*64+int64(bits.Len64(w))-1)
		}
		atomic.OrUint64(&b.dirty[i], w)
	}
	return pages
}

// entriesEnd is the number of the first payload block that the table has no
// entry for: of a differencing image's last chunk it has all.
func (b *bat) entriesEnd() int64 {
	if b.geometry.HasParent {
		return b.geometry.BitmapBlocks() * b.geometry.ChunkRatio()
	}
	return b.geometry.PayloadBlocks()
}

// pageOffset is where a page of the table lies in the file.
func (b *bat) pageOffset(page int64) int64 { return b.offset + page*ondisk.PageSize }

// encodePage copies a page as it is now. Beyond the last entry it is zero.
func (b *bat) encodePage(dst []byte, page int64) {
	clear(dst)
	first := page * entriesPerPage
	for i := range min(entriesPerPage, int64(len(b.entries))-first) {
		binary.LittleEndian.PutUint64(dst[i*8:], atomic.LoadUint64(&b.entries[first+i]))
	}
}

// pages is how many pages the entries take.
func (b *bat) pages() int64 { return (int64(len(b.entries)) + entriesPerPage - 1) / entriesPerPage }

// resized returns a table of another geometry at another place, with the
// entries and marks of b; entries beyond b's last are NOT_PRESENT.
func (b *bat) resized(g ondisk.Geometry, offset, length int64) *bat {
	n := newBAT(g, offset, length)
	for i := range min(len(b.entries), len(n.entries)) {
		n.entries[i] = atomic.LoadUint64(&b.entries[i])
	}
	copy(n.dirty, b.dirty)
	for i := range min(len(b.bitmaps), len(n.bitmaps)) {
		// Both have the same chunk from now on: a writer may be about to keep a
		// page in b's.
		b.bitmaps[i].CompareAndSwap(nil, new(bitmapChunk))
		n.bitmaps[i].Store(b.bitmaps[i].Load())
	}
	return n
}

// payload returns the BAT entry of a payload block.
func (im *Image) payload(block int64) ondisk.BATEntry {
	return im.bat.Load().payload(block)
}

func (b *bat) payload(block int64) ondisk.BATEntry { return b.at(b.payloadIndex(block)) }

// present reports whether a payload block has space and some of its data in it.
func present(e ondisk.BATEntry) bool {
	return e.State() == ondisk.BlockFullyPresent || e.State() == ondisk.BlockPartiallyPresent
}

// payloadIndex is Geometry.PayloadIndex without its divisions.
func (b *bat) payloadIndex(block int64) int64 { return block + block>>b.ratio }
