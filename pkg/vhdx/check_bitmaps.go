package vhdx

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// checkBitmap judges a chunk's sector bitmap entry, and the bits of the blocks
// that a writer may take up again: stale ones would make garbage of the
// parent's data.
func (b *batPass) checkBitmap(chunk int64, e ondisk.BATEntry) error {
	c := b.c
	index := b.g.BitmapIndex(chunk)
	partial := slices.Contains(b.states, byte(ondisk.BlockPartiallyPresent))
	defer clear(b.states)
	switch {
	case e.Reserved() != 0:
		clean := ondisk.MakeBATEntry(e.State(), e.Offset())
		if clean.State() != ondisk.BitmapPresent || clean.OffsetMB() == 0 || clean.Offset() < 0 || clean.Offset()+ondisk.BitmapBlockSize > b.end {
			b.garbled = true
			b.broken(CodeBATReserved, index, e, "reserved bits are set, and the rest makes no sense either")
			return nil
		}
		c.plan.replace(index, clean)
		b.fixable(CodeBATReserved, SeverityCorrupt, index, e, "clear them", "reserved bits are set")
		e = clean
	case e.State() == ondisk.BitmapNotPresent:
		if e.Offset() != 0 {
			b.warn(CodeBATOffset, index, e, 0, "a sector bitmap that is NOT_PRESENT with an offset")
		}
		if partial {
			b.broken(CodeBitmapMissing, index, e, "chunk %d has no sector bitmap, and has blocks that are PARTIALLY_PRESENT", chunk)
		}
		return nil
	case e.State() != ondisk.BitmapPresent:
		b.broken(CodeBitmapState, index, e, "state %d of a sector bitmap is reserved", e.State())
		return nil
	}
	if e.OffsetMB() == 0 || e.OffsetMB() > maxFileSize/ondisk.MiB || e.Offset()+ondisk.BitmapBlockSize > b.end {
		b.broken(CodeBATPlace, index, e, "the sector bitmap of chunk %d lies where none can, or beyond the file's end at %#x", chunk, c.r.FileSize)
		return nil
	}
	b.take(e.Offset(), ondisk.BitmapBlockSize)
	return b.staleBits(chunk, e.Offset())
}

// staleBits looks for bits of blocks that have no use for them: not present,
// and beyond the end of the disk. Of a FULLY_PRESENT block they mean nothing
// and stay.
func (b *batPass) staleBits(chunk, off int64) error {
	if hole, err := b.c.hole(extent{off, ondisk.BitmapBlockSize}); hole || err != nil {
		return err
	}
	buf := b.c.mib()[:ondisk.BitmapBlockSize]
	whole, err := b.c.read(buf, off)
	if err != nil || !whole {
		return err
	}
	pages := stalePages(b.g, chunk, b.states, buf)
	if len(pages) == 0 {
		return nil
	}
	for _, page := range pages {
		b.c.plan.clearBits(bitmapFix{chunk: chunk, off: off + int64(page)*ondisk.PageSize, page: page})
	}
	b.c.add(Finding{
		Code: CodeBitmapStale, Severity: SeverityWarning, Place: Place{"sector bitmap", off, chunk},
		Text:   fmt.Sprintf("%d of its pages have bits of blocks that have no sectors of their own", len(pages)),
		Repair: "clear them",
	})
	return nil
}

// hole reports whether all of a range is known to read zero. A log may fill it.
func (c *checker) hole(e extent) (bool, error) {
	seeker, canSeek := c.raw.(dataSeeker)
	if o, ok := c.f.(*overlayFile); !canSeek || ok && o.touches(e.off, e.end()) || e.end() > c.r.FileSize {
		return false, nil
	}
	next, err := seeker.NextData(e.off, e.end())
	return err == nil && next >= e.end(), err
}

// stalePages returns the pages of a chunk's bitmap that hold stale bits.
func stalePages(g ondisk.Geometry, chunk int64, states, bitmap []byte) []int {
	var pages []int
	for page := range len(bitmap) / ondisk.PageSize {
		p := bitmap[page*ondisk.PageSize:][:ondisk.PageSize]
		if clearStale(g, chunk, states, page, p, false) {
			pages = append(pages, page)
		}
	}
	return pages
}

// clearStale reports whether a page of a bitmap has stale bits, and clears them
// on demand. Blocks are whole numbers of bytes: at least 256 bits each.
func clearStale(g ondisk.Geometry, chunk int64, states []byte, page int, p []byte, wipe bool) bool {
	perBlock := int(g.BlockSize/int64(g.LogicalSectorSize)) / 8 // bytes
	sectors := g.VirtualSize / int64(g.LogicalSectorSize)
	stale := false
	for i := 0; i < len(p) && (wipe || !stale); {
		at := page*ondisk.PageSize + i
		n := min(len(p)-i, perBlock-at%perBlock)
		part := p[i : i+n]
		i += n
		switch ondisk.BlockState(states[at/perBlock]) {
		case ondisk.BlockFullyPresent:
			continue
		case ondisk.BlockPartiallyPresent:
			keep := sectors - (chunk*ondisk.SectorsPerBitmap + int64(at)*8)
			if keep >= int64(n)*8 {
				continue
			}
			stale = clearFrom(part, max(0, keep), wipe) || stale
		default:
			stale = clearFrom(part, 0, wipe) || stale
		}
	}
	return stale
}

// clearFrom reports whether any bit is set from one on, and clears them on demand.
func clearFrom(p []byte, bit int64, wipe bool) bool {
	p = p[bit/8:]
	if len(p) == 0 {
		return false
	}
	mask := byte(0xff) << (bit % 8)
	found := p[0]&mask != 0 || !bytes.Equal(p[1:], zeros[:len(p)-1])
	if found && wipe {
		clear(p[1:])
		p[0] &^= mask
	}
	return found
}
