package vhdx

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// compaction is one call of Compact.
type compaction struct {
	im   *Image
	o    CompactOptions
	out  Compacted
	buf  []byte
	done int64 // bytes of payload dealt with, each block twice
	all  int64
}

// moving is a block whose copy lies in a new place that nothing refers to yet.
type moving struct {
	block int64
	from  ondisk.BATEntry
	to    int64
}

// moveBatch bounds how many bytes are copied for one sync and log entry.
const moveBatch = 256 << 20

// Compact makes the file as short as its blocks allow: blocks that hold only
// zeros lose their space, those furthest up move down to where there is room,
// and the rest is cut off. While it runs reads go on, and writes are refused
// with [ErrInUse]. Cancelled, or failed for want of something, it leaves what
// it has done so far. What the virtual disk holds does not change, and so
// neither does DataWriteGuid. Close waits for its end. A fixed image keeps its space: ErrInvalid.
//
// Order of a move: copy into proven-zero space -> sync -> mapping in the log
// -> sync -> the old place is reclaimed (I-SPACE-4).
func (im *Image) Compact(ctx context.Context, o CompactOptions) (Compacted, error) {
	im.rotation.Lock()
	defer im.rotation.Unlock()
	im = im.head()
	if im.metadata.params.LeaveBlocksAllocated {
		return Compacted{}, fmt.Errorf("%s: compact: a fixed image keeps its space; convert it to a dynamic one: %w", im.name, ErrInvalid)
	}
	if err := im.exclude(); err != nil {
		return Compacted{}, err
	}
	defer im.readmit()
	c := &compaction{im: im, o: o, buf: alignedBytes(1 << 20)}
	err := c.run(ctx)
	if err != nil {
		err = fmt.Errorf("%s: compact: %w", im.name, err)
	}
	return c.out, err
}

// exclude keeps writers out, and commits what they have done: the volatile
// journal is empty then and stays so.
func (im *Image) exclude() error {
	im.committing.Lock()
	err := im.beginLocked(false)
	if err == nil {
		im.exclusive.Store(true)
		im.writable.Store(false)
	}
	im.committing.Unlock()
	if err != nil {
		return err
	}
	im.pins.wait()
	if err = im.commit(); err != nil {
		im.readmit()
	}
	return err
}

func (im *Image) readmit() {
	im.committing.Lock()
	defer im.committing.Unlock()
	im.exclusive.Store(false)
	im.writable.Store(im.begun.Load() && im.Poisoned() == nil && !im.closed.Load())
}

func (c *compaction) run(ctx context.Context) error {
	var err error
	if c.out.SizeBefore, err = c.im.f.Size(); err != nil {
		return err
	}
	blocks := c.allocated()
	c.all = 2 * int64(len(blocks)) * c.im.blockSize
	stopped := c.dropZeroes(ctx, blocks)
	if err := c.settle(); err != nil {
		return err
	}
	if stopped == nil {
		stopped = c.moveDown(ctx)
		if err := c.settle(); err != nil {
			return err
		}
	}
	if stopped == nil {
		c.progress(c.all - c.done)
	}
	c.out.SizeAfter, err = c.im.f.Size()
	return cmp.Or(stopped, err)
}

// stopped tells why the compaction has to end.
func (c *compaction) stopped(ctx context.Context) error {
	if err := c.im.usable(false); err != nil {
		return err
	}
	return ctx.Err()
}

func (c *compaction) progress(n int64) {
	c.done += n
	if c.o.Progress != nil {
		c.o.Progress(c.done, c.all)
	}
}

// allocated returns the blocks with space, the one furthest up first.
func (c *compaction) allocated() []int64 {
	b := c.im.bat.Load()
	var blocks []int64
	for block := range b.geometry.PayloadBlocks() {
		if present(b.payload(block)) {
			blocks = append(blocks, block)
		}
	}
	slices.SortFunc(blocks, func(x, y int64) int { return cmp.Compare(b.payload(y).Offset(), b.payload(x).Offset()) })
	return blocks
}

// settle commits, waits until what was given up is free, and cuts the tail.
func (c *compaction) settle() error {
	im := c.im
	if err := im.commit(); err != nil {
		return err
	}
	im.reclaimed()
	im.committing.Lock()
	defer im.committing.Unlock()
	if err := im.syncLog(syncCommit); err != nil { // makes the holes durable
		return err
	}
	return im.trimTail(0, 0)
}

// dropZeroes takes the space of blocks that hold only zeros.
func (c *compaction) dropZeroes(ctx context.Context, blocks []int64) error {
	for _, block := range blocks {
		if err := c.stopped(ctx); err != nil {
			return err
		}
		was := c.im.payload(block)
		if !c.o.KeepZeroes && was.State() == ondisk.BlockFullyPresent {
			blank, err := c.im.blankBlock(block, c.buf) //nolint:contextcheck // what it does is short, or may not be cut short
			if err != nil {
				return err
			}
			if blank && c.replace(block, was, ondisk.MakeBATEntry(ondisk.BlockZero, 0)) {
				c.out.Zeroes++
			}
		}
		c.progress(c.im.blockSize)
	}
	return nil
}

// replace changes an entry that is still what it was. No record of it is due:
// the disk shows the same with and without it.
func (c *compaction) replace(block int64, was, entry ondisk.BATEntry) bool {
	s := &c.im.space
	s.mu.Lock()
	defer s.mu.Unlock()
	b := c.im.bat.Load()
	index := b.payloadIndex(block)
	if b.at(index) != was {
		return false
	}
	b.set(index, entry)
	c.im.retire(extent{was.Offset(), c.im.blockSize})
	return true
}

// moveDown moves blocks from the file's end to the lowest room there is, until
// the last block has none below it.
func (c *compaction) moveDown(ctx context.Context) error {
	var batch []moving
	for _, block := range c.allocated() {
		err := c.stopped(ctx)
		var m moving
		ok := false
		if err == nil {
			m, ok, err = c.copyDown(ctx, block)
		}
		if err != nil {
			c.abandon(batch)
			return err
		}
		if !ok {
			break
		}
		batch = append(batch, m)
		if int64(len(batch))*c.im.blockSize >= moveBatch {
			if err := c.publish(batch); err != nil {
				return err
			}
			batch = batch[:0]
		}
		c.progress(c.im.blockSize)
	}
	return c.publish(batch)
}

// abandon gives the copies up.
func (c *compaction) abandon(batch []moving) {
	for _, m := range batch {
		c.im.abandonExtent(extent{m.to, c.im.blockSize})
	}
}

// publish makes the copies durable, then the mappings.
func (c *compaction) publish(batch []moving) error {
	if len(batch) == 0 {
		return nil
	}
	if err := c.im.sync(syncMoved); err != nil {
		return err
	}
	for _, m := range batch {
		if c.replace(m.block, m.from, ondisk.MakeBATEntry(m.from.State(), m.to)) {
			c.out.Moved++
		} else {
			c.im.abandonExtent(extent{m.to, c.im.blockSize})
		}
	}
	return c.im.commit()
}

// copyDown copies a block to the lowest room below it; ok is false if there is none.
func (c *compaction) copyDown(ctx context.Context, block int64) (m moving, ok bool, err error) {
	im := c.im
	m = moving{block: block, from: im.payload(block)}
	im.space.mu.Lock()
	m.to, ok = im.space.free.takeLowest(im.blockSize, m.from.Offset())
	im.space.mu.Unlock()
	if !ok {
		return m, false, nil
	}
	if err := c.copy(ctx, m.from.Offset(), m.to); err != nil {
		im.abandonExtent(extent{m.to, im.blockSize})
		return m, false, err
	}
	return m, true, nil
}

// copy copies a block into proven-zero space; what is zero is there already.
func (c *compaction) copy(ctx context.Context, from, to int64) error {
	im := c.im
	seeker, canSeek := im.f.(dataSeeker)
	for off, end := from, from+im.blockSize; off < end; {
		if err := c.stopped(ctx); err != nil {
			return err
		}
		if canSeek {
			next, err := seeker.NextData(off, end)
			if err != nil {
				return err
			}
			if off = next &^ (ioPage - 1); off >= end {
				break
			}
		}
		p := c.buf[:min(end-off, int64(len(c.buf)))]
		if err := readFull(im.f, p, off); err != nil {
			return fmt.Errorf("read payload at %#x: %w", off, err)
		}
		if !bytes.Equal(p, zeros[:len(p)]) {
			if _, err := im.f.WriteAt(p, to+off-from); err != nil {
				return err
			}
		}
		off += int64(len(p))
	}
	return nil
}
