package vhdx

import (
	"fmt"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// Resize gives the virtual disk another size, a multiple of the logical sector
// size of at most 64 TiB, and returns when it is durable. It may be larger; see
// [Image.Grow]. It may be smaller: requests under way end first, and later ones
// beyond the new end fail with [ErrOutOfRange]. Without o.CutData anything but
// zeros beyond the end refuses it, with the disk as it was. What has been cut
// reads zero should the disk grow again. It changes DataWriteGuid, so children
// of the image no longer open.
//
// Order of a smaller size: rest of the last block zeroed, mappings of the blocks
// beyond it gone -> (log) -> sync -> size in the log -> sync -> their space is
// reclaimed. Cut in between, the disk has its old size, and zeros where it
// will end.
func (im *Image) Resize(size int64, o ResizeOptions) error {
	if size >= im.Size() {
		return im.Grow(size)
	}
	im.rotation.Lock()
	defer im.rotation.Unlock()
	im = im.head()
	if err := im.usable(true); err != nil {
		return err
	}
	if err := im.checkSize(size); err != nil {
		return err
	}
	if im.metadata.params.HasParent {
		return fmt.Errorf("%s: make a differencing image smaller: growing it again would show its parent: %w", im.name, ErrUnsupported)
	}
	old := im.size.Load()
	if size >= old {
		return fmt.Errorf("%s: resize to %#x: its size has become %#x meanwhile: %w", im.name, size, old, ErrInvalid)
	}
	if err := im.refuseData(size, o); err != nil {
		return err
	}
	if err := im.begin(); err != nil {
		return err
	}
	im.setSize(size)
	im.pins.wait() // from here on nobody is beyond the end, or comes there
	err := im.refuseData(size, o)
	if err == nil {
		err = im.shrink(size)
	}
	if err != nil {
		im.setSize(old)
	}
	return err
}

func (im *Image) checkSize(size int64) error {
	lss := int64(im.LogicalSectorSize())
	switch {
	case size <= 0:
		return fmt.Errorf("%s: resize to %d bytes: %w", im.name, size, ErrInvalid)
	case size > ondisk.MaxVirtualSize:
		return fmt.Errorf("%s: resize to %#x: at most 64 TiB: %w", im.name, size, ErrInvalid)
	case size%lss != 0:
		return fmt.Errorf("%s: resize to %#x: no multiple of the logical sector size %d: %w", im.name, size, lss, ErrInvalid)
	}
	return nil
}

// setSize: those who decide under space.mu by the size decide by the present one.
func (im *Image) setSize(size int64) {
	im.space.mu.Lock()
	defer im.space.mu.Unlock()
	im.size.Store(size)
}

// refuseData looks for anything but zeros from size on.
func (im *Image) refuseData(size int64, o ResizeOptions) error {
	if o.CutData {
		return nil
	}
	buf := alignedBytes(1 << 20)
	first := size >> im.blockShift
	for block := first; block < im.bat.Load().geometry.PayloadBlocks(); block++ {
		skip := int64(0)
		if block == first {
			skip = size & (im.blockSize - 1)
		}
		blank, err := im.blankBlock(block, skip, buf)
		if err != nil {
			return err
		}
		if !blank {
			return fmt.Errorf("%s: resize to %#x: block %d, at %#x of the disk, holds more than zeros: %w", im.name, size, block, block<<im.blockShift, ErrDataBeyondEnd)
		}
	}
	return nil
}

// blankBlock reports whether a block reads zero from skip on. The disk may
// end before its table does.
func (im *Image) blankBlock(block, skip int64, buf []byte) (bool, error) {
	pin := im.pins.enter()
	defer im.pins.leave(pin)
	e := im.payload(block)
	if e.State() != ondisk.BlockFullyPresent {
		return true, nil
	}
	end, err := im.f.Size()
	if err != nil {
		return false, err
	}
	end = min(end, e.Offset()+im.blockSize)
	from := e.Offset() + skip
	if page := roundUp(from, ioPage); from < min(page, end) {
		head := buf[:min(page, end)-from]
		if err := readFull(im.f, head, from); err != nil {
			return false, fmt.Errorf("%s: read payload at %#x: %w", im.name, from, err)
		}
		if !allZero(head) {
			return false, nil
		}
		from = page
	}
	return im.blankRange(from, end, buf)
}

// shrink: nobody is beyond the new end any more.
func (im *Image) shrink(size int64) error {
	im.committing.Lock()
	defer im.committing.Unlock()
	if err := im.usable(true); err != nil {
		return err
	}
	logSize := func() error {
		pages, err := im.sizePages(size)
		if err != nil {
			return err
		}
		if err := im.logPages(pages); err != nil {
			return err
		}
		return im.syncLog(syncCommit)
	}
	cut := func() error {
		if err := im.zeroRest(size); err != nil {
			return fmt.Errorf("%s: zero what follows %#x: %w", im.name, size, err)
		}
		im.unmapFrom(size)
		return im.commitLocked()
	}
	steps := []func() error{cut, logSize}
	if im.opts.omit.has(orderCutThenSize) {
		steps = []func() error{logSize, cut}
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	b := im.bat.Load()
	im.swapBAT(im.metadata.geometry(size), b.offset, b.length)
	if im.fixedEnd > 0 {
		im.fixedEnd = min(im.fixedEnd, im.usedEnd()+im.missing()*im.blockSize)
	}
	return nil
}

// zeroRest zeroes what the block that the disk ends in holds beyond the end: a
// larger disk would show it again.
func (im *Image) zeroRest(size int64) error {
	inBlock := size & (im.blockSize - 1)
	if inBlock == 0 {
		return nil
	}
	e := im.payload(size >> im.blockShift)
	if e.State() != ondisk.BlockFullyPresent {
		return nil
	}
	from, to := e.Offset()+inBlock, e.Offset()+im.blockSize
	pages := roundUp(from, ioPage)
	err := im.writeZeros(from, pages)
	if err != nil || pages == to {
		return err
	}
	if err = im.makeZero(extent{pages, to - pages}); err != nil {
		err = im.writeZeros(pages, to)
	}
	return err
}

// unmapFrom takes the space of all blocks that begin at size or beyond.
func (im *Image) unmapFrom(size int64) {
	s := &im.space
	s.mu.Lock()
	defer s.mu.Unlock()
	b := im.bat.Load()
	for block := (size + im.blockSize - 1) >> im.blockShift; block < b.geometry.PayloadBlocks(); block++ {
		index := b.payloadIndex(block)
		e := b.at(index)
		if e == 0 {
			continue
		}
		b.set(index, 0)
		if e.Offset() > 0 {
			im.retire(extent{e.Offset(), im.blockSize})
		}
	}
}

// missing counts the blocks of a fixed image that have no space yet: QEMU makes such.
func (im *Image) missing() int64 {
	b, n := im.bat.Load(), int64(0)
	for block := range b.geometry.PayloadBlocks() {
		if b.payload(block).State() != ondisk.BlockFullyPresent {
			n++
		}
	}
	return n
}
