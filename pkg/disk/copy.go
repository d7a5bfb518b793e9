package disk

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// Options of [Copy]. The zero value copies everything to a target of which
// nothing is known.
type Options struct {
	// Blank: the target reads zero wherever nothing has been written, so zeros
	// need not be.
	Blank bool
	// Whole writes zeros like data, piece after piece: for a target that is a
	// pipe.
	Whole bool
	// NoClone reads and writes where the filesystem could share the data of
	// source and target (reflink): for a target that must have space of its own.
	NoClone bool
	// Workers at once, each with 2 MiB of memory; 0: 4, at most 64.
	Workers int
	// Unit is how many bytes of zeros, aligned, are left out rather than
	// written; a power of two up to 2 MiB; 0: 64 KiB.
	Unit int
	// From is where to begin: the target holds all before it, see Saved.
	From int64
	// Progress, if set, is told now and then how far the copy is. Its error
	// ends the copy.
	Progress func(done, total int64) error
	// Saved, if set, is told after every Interval bytes read that the target
	// holds, durably, all that the source does before an offset (I-CPY-1).
	Saved    func(upTo int64) error
	Interval int64
}

// Stats says what a copy did.
type Stats struct {
	Size    int64 // of the source
	Read    int64 // bytes read
	Written int64 // bytes written that were not zero
	Cloned  int64 // bytes shared with the source, neither read nor written
}

// Copy makes target hold what source does, at the same offsets. The target is
// flushed at the end. It may be larger than the source; what is beyond stays.
func Copy(ctx context.Context, target Target, source Source, o Options) (Stats, error) {
	if target.Size() < source.Size() {
		return Stats{}, fmt.Errorf("copy %d bytes to a disk of %d: it is too small", source.Size(), target.Size())
	}
	if o.Unit <= 0 || o.Unit > pieceSize {
		o.Unit = defaultUnit
	}
	n := workers(o.Workers)
	c := &copier{o: o, target: target, source: source, stats: Stats{Size: source.Size()}, at: o.From, busy: make([]int64, n), last: make(chan struct{})}
	close(c.last)
	c.cloning.Store(o.Blank && !o.Whole && !o.NoClone)
	for i := range c.busy {
		c.busy[i] = idle
	}
	if err := crew(ctx, n, c.work); err != nil {
		return c.stats, err
	}
	return c.stats, target.Flush()
}

// copier is a Copy under way.
type copier struct {
	o      Options
	target Target
	source Source

	mu       sync.Mutex
	at       int64         // guarded by mu; everything before has been handed out
	dataEnd  int64         // guarded by mu; at lies in data up to here
	dataNext int64         // guarded by mu; the next data begins here; before at: not known
	busy     []int64       // guarded by mu; by worker: where its piece begins, or idle
	saved    int64         // guarded by mu; what had been read when Saved was told last
	stats    Stats         // guarded by mu
	last     chan struct{} // guarded by mu; after of the piece handed out last

	saving sync.Mutex // one Saved at a time

	cloning atomic.Bool // it may work
	probed  atomic.Bool // it has been tried whether it may
	shared  atomic.Bool // it has worked
}

const idle = int64(1<<63 - 1)

// piece is a part of the disk for one worker.
type piece struct {
	off, length int64
	zero        bool // reads zero, need not be read
	// before is closed when the pieces before have their place in the target,
	// after is to be closed when this one has.
	before, after chan struct{}
}

// next hands out the next piece, of which worker is busy until it asks again.
func (c *copier) next(worker int) (p piece, ok bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy[worker] = idle
	size := c.source.Size()
	size = min(size, c.stats.Size) // a live source may grow meanwhile
	for c.at < size {
		if c.at >= c.dataEnd && c.dataNext <= c.at {
			if c.dataNext, c.dataEnd, err = c.source.NextData(c.at); err != nil {
				return piece{}, false, err
			}
			c.dataNext, c.dataEnd = min(c.dataNext, size), min(c.dataEnd, size)
		}
		if p = c.cut(); p.zero && c.o.Blank && !c.o.Whole {
			c.at = p.off + p.length
			continue
		}
		c.busy[worker] = p.off
		c.at = p.off + p.length
		p.before, p.after = c.last, make(chan struct{})
		c.last = p.after
		return p, true, nil
	}
	return piece{}, false, nil
}

// maxZeroPiece is how much is zeroed at once.
const maxZeroPiece = 1 << 30

// cut returns the piece that begins at c.at. Caller holds mu.
func (c *copier) cut() piece {
	p := piece{off: c.at, zero: c.at < c.dataNext}
	if p.zero {
		p.length = c.dataNext - c.at
		switch {
		case c.o.Whole:
			p.length = min(p.length, pieceSize-c.at%pieceSize)
		case !c.o.Blank:
			p.length = min(p.length, maxZeroPiece)
		}
		return p
	}
	p.length = min(c.dataEnd-c.at, pieceSize-c.at%pieceSize)
	return p
}

// awaitTurn waits until all pieces before have their place.
func (p piece) awaitTurn(ctx context.Context) error {
	select {
	case <-p.before:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (c *copier) work(ctx context.Context, worker int, buf []byte) error {
	if s, ok := c.target.(*Stream); ok {
		defer context.AfterFunc(ctx, func() { s.Stop(context.Cause(ctx)) })()
	}
	for {
		p, ok, err := c.next(worker)
		if err != nil || !ok {
			return err
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := c.copy(ctx, p, buf[:min(p.length, pieceSize)]); err != nil {
			return err
		}
		if err := c.report(); err != nil {
			return err
		}
	}
}

func (c *copier) copy(ctx context.Context, p piece, buf []byte) error {
	var did Stats
	var err error
	switch {
	case p.zero && !c.o.Whole:
		close(p.after) // a place it has already
		err = c.target.WriteZeroes(p.off, p.length)
	case c.o.Whole:
		did, err = c.copyWhole(p, buf)
	default:
		did, err = c.copyData(ctx, p, buf)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stats.Read += did.Read
	c.stats.Written += did.Written
	c.stats.Cloned += did.Cloned
	return err
}

// copyWhole writes a piece as it is, zeros too.
func (c *copier) copyWhole(p piece, buf []byte) (did Stats, err error) {
	if p.zero {
		clear(buf)
	} else if err := readFull(c.source, buf, p.off); err != nil {
		return did, fmt.Errorf("read the source at %#x: %w", p.off, err)
	} else {
		did.Read = p.length
	}
	_, err = c.target.WriteAt(buf, p.off)
	did.Written = p.length
	return did, err
}

// copyData reads a piece and writes what of it is not zero, or has the
// filesystem share it.
func (c *copier) copyData(ctx context.Context, p piece, buf []byte) (did Stats, err error) {
	if cloned, err := c.clone(ctx, p); cloned || err != nil {
		return Stats{Cloned: p.length}, err
	}
	if err := readFull(c.source, buf, p.off); err != nil {
		return did, fmt.Errorf("read the source at %#x: %w", p.off, err)
	}
	did.Read = p.length
	ranges := nonzero(buf, c.o.Unit)
	if err := p.awaitTurn(ctx); err != nil {
		return did, err
	}
	placed, err := c.place(p.off, ranges)
	if err != nil {
		return did, err
	}
	close(p.after)
	did.Written, err = writeRanges(c.target, p.off, buf, ranges, c.o.Blank)
	for _, r := range placed {
		if err != nil {
			r.Abort()
		} else {
			err = r.Commit()
		}
	}
	return did, err
}

// place gives what is about to be written its place in a new image: piece after
// piece, though they are written at once, so that the image is as if written
// in order.
func (c *copier) place(off int64, ranges []span) ([]*vhdx.Resolution, error) {
	im, ok := c.target.(*NewImage)
	if !ok {
		return nil, nil
	}
	var placed []*vhdx.Resolution
	for _, s := range ranges {
		r := new(vhdx.Resolution)
		if err := im.Resolve(true, off+int64(s.start), int64(s.end-s.start), r); err != nil {
			for _, r := range placed {
				r.Abort()
			}
			return nil, err
		}
		placed = append(placed, r)
	}
	return placed, nil
}

// writeRanges writes the ranges of buf, which belongs at off. What is between
// them is zero and need not be written to a blank target.
func writeRanges(t Target, off int64, buf []byte, ranges []span, blank bool) (written int64, err error) {
	at := 0
	for _, s := range append(ranges, span{len(buf), len(buf)}) {
		if at < s.start && !blank {
			if err := t.WriteZeroes(off+int64(at), int64(s.start-at)); err != nil {
				return written, err
			}
		}
		if s.start < s.end {
			if _, err := t.WriteAt(buf[s.start:s.end], off+int64(s.start)); err != nil {
				return written, err
			}
			written += int64(s.end - s.start)
		}
		at = s.end
	}
	return written, nil
}

// report tells how far the copy is and saves it when that is due.
func (c *copier) report() error {
	if c.o.Progress == nil && c.o.Saved == nil {
		return nil
	}
	if !c.saving.TryLock() {
		return nil // another worker is at it
	}
	defer c.saving.Unlock()
	c.mu.Lock()
	done := c.at
	for _, off := range c.busy {
		done = min(done, off) // the caller's own piece among them: it tells a little late
	}
	due := c.o.Saved != nil && c.stats.Read-c.saved >= c.o.Interval
	if due {
		c.saved = c.stats.Read
	}
	c.mu.Unlock()
	if c.o.Progress != nil {
		if err := c.o.Progress(done, c.stats.Size); err != nil {
			return err
		}
	}
	if !due {
		return nil
	}
	if err := c.target.Flush(); err != nil {
		return err
	}
	return c.o.Saved(done)
}
