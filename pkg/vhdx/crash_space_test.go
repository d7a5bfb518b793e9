package vhdx_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// idle waits for what goes on behind the operations, so that the steps of a
// seed are the same each time. A late write holds it up for as long as it is late.
func (w *run) idle() {
	if w.late == nil {
		w.im.Idle()
	}
}

// trim discards one of the workload's blocks, whole.
func (w *run) trim() error {
	bs := w.session.blockSize
	blocks := w.blocks()
	off := blocks[w.r.IntN(len(blocks))] * bs
	if off >= w.im.Size() {
		return nil
	}
	return w.discardBlock(off)
}

func (w *run) discardBlock(off int64) error {
	n := min(w.session.blockSize, w.im.Size()-off)
	c := w.model().Zero(off, n)
	err := w.im.Discard(off, n)
	c.Done(err)
	return err
}

// lateWrite is a write that was under way when its block was discarded, and
// reaches the place only later: what a backend does that issues its own I/O.
type lateWrite struct {
	data []byte
	at   int64 // in the file
	pin  uint32
}

// straggle begins a late write, or ends the one there is.
func (w *run) straggle() error {
	if w.late != nil {
		late := w.late
		_, err := w.file.WriteAt(late.data, late.at)
		w.leave()
		return err
	}
	e := w.last
	at, pin, ok := w.im.Pin(true, e.Off, e.N)
	if !ok {
		return nil
	}
	w.late = &lateWrite{data: make([]byte, e.N), at: at, pin: pin}
	if _, err := w.file.ReadAt(w.late.data, at); err != nil {
		return err
	}
	return w.discardBlock(e.Off / w.session.blockSize * w.session.blockSize)
}

// leave lets a late write come to nothing.
func (w *run) leave() {
	if w.late != nil {
		w.im.Unpin(w.late.pin)
		w.late = nil
	}
}

// shrink cuts off up to half of the disk. Data there refuses it first, once.
func (w *run) shrink() error {
	size := w.im.Size()
	lss := int64(w.im.LogicalSectorSize())
	return w.shrinkTo(max(lss, size-(1+w.r.Int64N(max(1, size/2/lss)))*lss))
}

func (w *run) shrinkTo(to int64) error {
	size := w.im.Size()
	if to == size {
		return nil
	}
	data, err := w.holdsData(to)
	if err != nil {
		return err
	}
	if data {
		if err := w.im.Resize(to, vhdx.ResizeOptions{}); !errors.Is(err, vhdx.ErrDataBeyondEnd) || w.im.Size() != size {
			return fmt.Errorf("resize from %#x to %#x with data beyond it: %w, size %#x", size, to, err, w.im.Size())
		}
	}
	w.leave() // it waits for those inside
	w.session.shrunk = true
	c := w.model().Resize(to)
	err = w.im.Resize(to, vhdx.ResizeOptions{CutData: data})
	c.Done(err)
	return err
}

// holdsData reports whether anything but zeros follows off.
func (w *run) holdsData(off int64) (bool, error) {
	found := false
	err := readEach(w.im, w.model().Touched(readSize), func(p []byte, at int64) error {
		found = found || !allZero(p[min(int64(len(p)), max(0, off-at)):])
		return nil
	})
	return found, err
}

func allZero(p []byte) bool {
	return len(bytes.TrimLeft(p, "\x00")) == 0
}

// compact compacts the image, or begins to.
func (w *run) compact() error {
	return w.compactUntil(w.r.Int64N(40 * mib))
}

// compactUntil compacts, but no more than so many bytes of payload.
func (w *run) compactUntil(stopAt int64) error {
	w.leave()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	_, err := w.im.Compact(ctx, vhdx.CompactOptions{Progress: func(done, _ int64) {
		if done > stopAt {
			cancel()
		}
	}})
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
