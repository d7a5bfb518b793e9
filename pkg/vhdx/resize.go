package vhdx

import (
	"context"
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
// beyond it gone, of a differencing image so that its parent does not show ->
// (log) -> sync -> size in the log -> sync -> their space is reclaimed. Cut in
// between, the disk has its old size, and zeros where it will end, or what its
// parent has shown there before.
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
	old := im.size.Load()
	if size >= old {
		return fmt.Errorf("%s: resize to %#x: its size has become %#x meanwhile: %w", im.name, size, old, ErrInvalid)
	}
	if err := im.refuseData(size, old, o); err != nil {
		return err
	}
	if err := im.begin(); err != nil {
		return err
	}
	im.setSize(size)
	im.pins.wait() // from here on nobody is beyond the end, or comes there
	err := im.refuseData(size, old, o)
	if err == nil {
		err = im.shrink(size)
	}
	if err != nil {
		im.setSize(old)
		return err
	}
	return im.forgetBeyond(size)
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

// refuseData looks for anything but zeros between the new end and the old one,
// be it the image's own or its parent's.
func (im *Image) refuseData(size, old int64, o ResizeOptions) error {
	if o.CutData {
		return nil
	}
	at, err := im.dataIn(context.Background(), size, old)
	if err == nil && at >= 0 {
		err = fmt.Errorf("%s: resize to %#x: block %d of the disk holds more than zeros at %#x or soon after it: %w", im.name, size, at>>im.blockShift, at, ErrDataBeyondEnd)
	}
	return err
}

// shrink: nobody is beyond the new end any more. The size is durable when it
// returns, and the tables are still the old ones.
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
		if err := im.loadBitsBeyond(size); err != nil {
			return err
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
	if !present(e) {
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

// unmapFrom takes the space of all blocks that begin at size or beyond, and of
// what another program left behind the last one: logged pages of a table hold
// that, too, and a disk that grows again would show it. What is the parent's now
// stays so, what hides it goes on hiding it.
func (im *Image) unmapFrom(size int64) {
	s := &im.space
	s.mu.Lock()
	defer s.mu.Unlock()
	b := im.bat.Load()
	var gone ondisk.BATEntry
	if im.metadata.params.HasParent && !im.opts.omit.has(orderSizeThenForget) {
		gone = ondisk.MakeBATEntry(ondisk.BlockZero, 0)
	}
	for block := (size + im.blockSize - 1) >> im.blockShift; block < b.entriesEnd(); block++ {
		index := b.payloadIndex(block)
		e := b.at(index)
		if e == 0 || e == gone {
			continue
		}
		b.set(index, gone)
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
