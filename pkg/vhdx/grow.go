package vhdx

import (
	"errors"
	"fmt"
	"slices"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// Grow makes the virtual disk larger, while it is read and written, and
// returns when the new size is durable. The size is kept exactly: any multiple
// of the logical sector size up to 64 TiB. New space reads zero; a fixed image
// gets its space at once. Growing to the present size does nothing. Of a
// differencing image whose parent's disk is larger nothing that the parent holds
// beyond the old end comes to show.
//
// Order: zeros behind the old end, in its block -> the new part of the BAT, or all of it where its region is too small
// and a larger one takes its place -> sync -> BAT pages or region tables, and
// the size, in the log -> sync.
func (im *Image) Grow(size int64) error {
	im.rotation.Lock()
	defer im.rotation.Unlock()
	im = im.head()
	if err := im.usable(true); err != nil {
		return err
	}
	if size < im.size.Load() {
		return fmt.Errorf("%s: grow to %#x: the disk has %#x already: %w", im.name, size, im.size.Load(), ErrInvalid)
	}
	if err := im.checkSize(size); err != nil || size == im.size.Load() {
		return err
	}
	if err := im.begin(); err != nil {
		return err
	}
	old := im.size.Load()
	steps := []func() error{
		func() error { return im.coverTail(old, size) },
		func() error { return im.growTo(size) },
	}
	if im.opts.omit.has(orderHideThenSize) {
		slices.Reverse(steps)
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (im *Image) growTo(size int64) error {
	im.committing.Lock()
	defer im.committing.Unlock()
	if err := im.usable(true); err != nil {
		return err
	}
	return im.growLocked(size)
}

// growLocked: caller holds committing.
func (im *Image) growLocked(size int64) error {
	old := im.bat.Load()
	g := im.metadata.geometry(size)
	region := im.regions.bat
	moved := g.Entries()*ondisk.BATEntrySize > old.length
	if moved {
		off, err := im.take(g.BATLength())
		if err != nil {
			return fmt.Errorf("%s: a BAT region for %#x bytes of disk: %w", im.name, size, err)
		}
		region.Offset, region.Length = uint64(off), uint32(g.BATLength())
	}
	im.swapBAT(g, int64(region.Offset), int64(region.Length))
	if im.opts.omit.has(orderHideThenSize) {
		defer im.hideParent(old, false)
	} else {
		im.hideParent(old, moved)
	}
	table, pages, err := im.prepareGrowth(old, region, moved, size)
	if err != nil {
		im.swapBAT(old.geometry, old.offset, old.length)
		if moved {
			im.abandonExtent(extent{int64(region.Offset), int64(region.Length)})
		}
		return err
	}
	if !moved { // a moved BAT holds them already
		if err := im.logDirty(); err != nil {
			return err
		}
	}
	if moved && !im.opts.omit.has(orderBitsThenMove) {
		if err := im.logBitmaps(); err != nil {
			return err
		}
	}
	if err := im.logPages(pages); err != nil {
		return err
	}
	if err := im.syncLog(syncCommit); err != nil {
		return err
	}
	if moved {
		im.retireMetadata(extent{old.offset, old.length})
	}
	im.regions.table, im.regions.bat = table, region
	im.setSize(size)
	return nil
}

// prepareGrowth writes, durably, what nothing refers to yet, and returns the
// pages whose logging makes the disk larger: the size comes last, in the entry
// that also names a moved BAT.
func (im *Image) prepareGrowth(old *bat, region ondisk.Region, moved bool, size int64) (ondisk.RegionTable, []page, error) {
	b := im.bat.Load()
	table := im.regions.table
	if err := im.fillFixed(old.geometry.PayloadBlocks(), b.geometry.PayloadBlocks()); err != nil {
		return table, nil, err
	}
	var pages []page
	var err error
	switch {
	case moved:
		table, pages, err = im.regionPages(region)
		if err == nil {
			err = im.allocate(b.offset, b.pages()*ondisk.PageSize) // I-SYNC-3
		}
		if err == nil {
			err = im.writeBAT(b)
		}
	case b.pages() > old.pages():
		err = im.writeZeros(b.pageOffset(old.pages()), b.pageOffset(b.pages()))
	}
	if err != nil {
		return table, nil, err
	}
	b.markDirty(max(old.pages(), 1) - 1) // behind the last old entry the file may hold anything
	sized, err := im.sizePages(size)
	if err != nil {
		return table, nil, err
	}
	return table, append(pages, sized...), im.sync(syncNewBAT)
}

// swapBAT gives the table in memory another geometry and place.
func (im *Image) swapBAT(g ondisk.Geometry, offset, length int64) {
	im.space.mu.Lock()
	defer im.space.mu.Unlock()
	im.bat.Store(im.bat.Load().resized(g, offset, length))
}

// fillFixed gives the new blocks of a fixed image their space.
func (im *Image) fillFixed(from, to int64) error {
	if !im.metadata.params.LeaveBlocksAllocated || from >= to {
		return nil
	}
	length := (to - from) * im.blockSize
	off, err := im.take(length)
	if err == nil {
		err = im.allocate(off, length)
		if err != nil {
			im.abandonExtent(extent{off, length})
		}
	}
	if err != nil {
		return fmt.Errorf("%s: allocate %#x bytes for a fixed image: %w", im.name, length, err)
	}
	b := im.bat.Load()
	for block := from; block < to; block++ {
		b.set(b.payloadIndex(block), ondisk.MakeBATEntry(ondisk.BlockFullyPresent, off+(block-from)*im.blockSize))
	}
	return nil
}

// allocate makes proven-zero space real: a fixed image never runs out of it.
func (im *Image) allocate(off, length int64) error {
	if a, ok := im.f.(Allocator); ok {
		if err := a.Allocate(off, length); !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
	}
	return im.writeZeros(off, off+length)
}

// writeBAT writes a whole table to its new, proven-zero region. Entries that
// are published meanwhile mark their pages dirty and follow through the log.
func (im *Image) writeBAT(b *bat) error {
	const run = 256
	buf := alignedBytes(run * ondisk.PageSize)
	for first := int64(0); first < b.pages(); first += run {
		n := min(run, b.pages()-first)
		for i := range n {
			b.encodePage(buf[i*ondisk.PageSize:][:ondisk.PageSize], first+i)
		}
		if _, err := im.f.WriteAt(buf[:n*ondisk.PageSize], b.pageOffset(first)); err != nil {
			return err
		}
	}
	return nil
}

// regionPages returns the region table with the BAT at another place, and the
// pages of its two copies.
func (im *Image) regionPages(region ondisk.Region) (ondisk.RegionTable, []page, error) {
	table := ondisk.RegionTable{Regions: slices.Clone(im.regions.table.Regions)}
	for i := range table.Regions {
		if table.Regions[i].ID == region.ID {
			table.Regions[i] = region
		}
	}
	buf := make([]byte, ondisk.RegionTableSize)
	if err := table.Encode(buf); err != nil {
		return table, nil, fmt.Errorf("%s: %w", im.name, err)
	}
	var pages []page
	for _, copyAt := range []int64{ondisk.RegionTable1Offset, ondisk.RegionTable2Offset} {
		for at := 0; at < len(buf); at += ondisk.PageSize {
			pages = append(pages, page{copyAt + int64(at), buf[at:][:ondisk.PageSize]})
		}
	}
	return table, pages, nil
}

// sizePages returns the page, or the two, that hold the Virtual Disk Size item
// with a new size in it.
func (im *Image) sizePages(size int64) ([]page, error) {
	at := im.metadata.virtualSizeAt
	first := at &^ (ondisk.PageSize - 1)
	end := roundUp(at+ondisk.VirtualDiskSizeSize, ondisk.PageSize)
	buf := make([]byte, end-first)
	var pages []page
	for off := first; off < end; off += ondisk.PageSize {
		data := buf[off-first:][:ondisk.PageSize]
		if logged, ok := im.log.logged[off]; ok {
			copy(data, logged)
		} else if err := readFull(im.f, data, off); err != nil {
			return nil, fmt.Errorf("%s: read metadata at %#x: %w", im.name, off, err)
		}
		pages = append(pages, page{off, data})
	}
	ondisk.EncodeVirtualDiskSize(buf[at-first:], size)
	return pages, nil
}
