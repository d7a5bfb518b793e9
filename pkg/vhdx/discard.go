package vhdx

import (
	"fmt"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/deathpoint"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// WriteZeroes makes a range read zero. Blocks that have space keep it where
// the file can zero a range without writing; otherwise whole blocks of a
// dynamic image become ZERO and lose it. Blocks without space get none.
func (im *Image) WriteZeroes(off, n int64) error { return im.zero(off, n, false) }

// Discard makes a range read zero and gives its space back. Blocks covered
// whole, the last one up to the disk's end, become UNMAPPED, and others take
// their space once that is durable; of the rest the space is punched where the
// file can have holes. A fixed image keeps its space.
func (im *Image) Discard(off, n int64) error { return im.zero(off, n, true) }

func (im *Image) zero(off, n int64, discard bool) error {
	im = im.head()
	if err := im.usable(true); err != nil {
		return err
	}
	if err := im.checkRange(off, n); err != nil {
		return err
	}
	for end := off + n; off < end; {
		done, err := im.zeroNext(off, end-off, discard)
		if err != nil {
			return err
		}
		off += done
	}
	return nil
}

// zeroNext zeroes the part of a range in its first block and returns its length.
func (im *Image) zeroNext(off, n int64, discard bool) (int64, error) {
	im, pin := im.enter()
	defer im.pins.leave(pin)
	n = min(n, im.blockSize-off&(im.blockSize-1))
	if err := im.zeroInBlock(off, n, discard); err != nil {
		return 0, fmt.Errorf("%s: zero %#x bytes at %#x: %w", im.name, n, off, err)
	}
	return n, nil
}

// zeroInBlock zeroes a range inside one block.
func (im *Image) zeroInBlock(off, n int64, discard bool) error {
	if err := im.checkRange(off, n); err != nil {
		return err // the disk has become smaller since the request began
	}
	switch im.payload(off >> im.blockShift).State() {
	case ondisk.BlockFullyPresent:
		return im.zeroPresent(off, n, discard)
	case ondisk.BlockUndefined, ondisk.BlockUnmapped:
		if discard {
			return nil
		}
		// Another program may show the former content of such a block.
		done, err := im.unmap(off>>im.blockShift, ondisk.BlockZero, func(was ondisk.BATEntry, _ int64) bool {
			return was.State() != ondisk.BlockFullyPresent
		})
		if !done && err == nil { // it has been written to meanwhile
			err = im.zeroPiece(off, n, false)
		}
		return err
	case ondisk.BlockNotPresent, ondisk.BlockPartiallyPresent:
		if im.metadata.params.HasParent {
			return im.zeroInChild(off, n, discard)
		}
	}
	return nil
}

func (im *Image) zeroPresent(off, n int64, discard bool) error {
	if err := im.begin(); err != nil {
		return err
	}
	fixed := im.metadata.params.LeaveBlocksAllocated
	covered := func(_ ondisk.BATEntry, size int64) bool {
		return off&(im.blockSize-1) == 0 && (n == im.blockSize || off+n >= size)
	}
	state := ondisk.BlockUnmapped
	switch {
	case fixed || !covered(0, im.bat.Load().geometry.VirtualSize):
		return im.zeroPiece(off, n, discard && !fixed)
	case !discard:
		if done, err := im.zeroWhole(off, n); done || err != nil {
			return err
		}
		state = ondisk.BlockZero
	}
	done, err := im.unmap(off>>im.blockShift, state, covered)
	if done || err != nil {
		return err
	}
	return im.zeroPiece(off, n, discard)
}

// zeroWhole zeroes a block that keeps its space; done is false if that takes
// writing.
func (im *Image) zeroWhole(off, n int64) (done bool, err error) {
	at, ok := im.allocated(off)
	if err := im.usable(true); !ok || err != nil {
		return !ok, err
	}
	length := roundUp(n, ioPage) // the block is longer
	return im.zeroPages(at, length, false), nil
}

// mayUnmap tells of a block, by its entry and the size that the table is for,
// whether it may lose its content. It is asked when neither can change. That size
// is the disk's, but for a disk that is about to shrink: it may keep the old one
// after all, and with it what lies behind the new end.
type mayUnmap func(was ondisk.BATEntry, size int64) bool

// unmap takes a block's space away; from now on it reads zero. Done is false
// if it may not.
func (im *Image) unmap(block int64, state ondisk.BlockState, may mayUnmap) (done bool, err error) {
	if err := im.begin(); err != nil {
		return false, err
	}
	for {
		many := false
		done, many, err = im.tryUnmap(block, state, may)
		if err != nil && !isJournalFull(err) || err == nil && !many {
			return done, err
		}
		if commitErr := im.commit(); commitErr != nil || err == nil {
			return done, commitErr
		}
	}
}

// tryUnmap: journal, then memory (I-MAP-1); many says that a commit is due.
func (im *Image) tryUnmap(block int64, state ondisk.BlockState, may mayUnmap) (done, many bool, err error) {
	s := &im.space
	s.mu.Lock()
	defer s.mu.Unlock()
	b := im.bat.Load()
	index := b.payloadIndex(block)
	was, entry := b.at(index), ondisk.MakeBATEntry(state, 0)
	if !may(was, b.geometry.VirtualSize) {
		return false, false, nil
	}
	if was == entry {
		return true, false, nil
	}
	if !im.opts.omit.has(orderUnmapThenAnswer) {
		if err := im.record(JournalRecord{Kind: JournalUnmapped, Entry: uint64(index), Value: uint64(entry)}); err != nil {
			return false, false, err
		}
	}
	deathpoint.Reach(deathpoint.UnmapRecorded)
	b.set(index, entry)
	if was.Offset() > 0 {
		im.retire(extent{was.Offset(), im.blockSize})
	}
	return true, len(s.retired) >= retireMax, nil
}

// allocated returns where in the file a byte of the disk lies; ok is false if
// its block has no space, and then reads zero. Caller has entered.
func (im *Image) allocated(off int64) (at int64, ok bool) {
	e := im.payload(off >> im.blockShift)
	return e.Offset() + off&(im.blockSize-1), present(e)
}

// zeroPiece zeroes a range inside an allocated block: whole pages by the
// filesystem where it can, the rest by writing.
func (im *Image) zeroPiece(off, n int64, free bool) error {
	at, ok := im.allocated(off)
	if err := im.usable(true); !ok || err != nil {
		return err
	}
	first, last := roundUp(at, ioPage), (at+n)/ioPage*ioPage
	if first >= last || !im.zeroPages(first, last-first, free) {
		return im.writeZeros(at, at+n)
	}
	if err := im.writeZeros(at, first); err != nil {
		return err
	}
	return im.writeZeros(last, at+n)
}

func (im *Image) zeroPages(off, length int64, free bool) bool {
	if free {
		return im.punch(extent{off, length}) == nil
	}
	z, ok := im.f.(ZeroRanger)
	return ok && z.ZeroRange(off, length) == nil
}

func (im *Image) writeZeros(off, end int64) error {
	for off < end {
		n, err := im.f.WriteAt(zeros[:min(end-off, int64(len(zeros)))], off)
		if err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}
