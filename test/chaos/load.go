package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const maxRequest = 1 << 20

// A load writes to one device or file and knows what every sector must hold.
type load struct {
	name   string
	direct *os.File // O_DIRECT: what is read comes from the device
	cached *os.File // nil for a raw device
	unit   int64    // of direct requests

	writers []*writer
	probe   *probe
	found   *findings
}

// findings is what must stay empty.
type findings struct {
	errors, wrong atomic.Int64
	log           func(format string, args ...any)
}

func (f *findings) failed(where string, err error) {
	f.errors.Add(1)
	f.log("I/O ERROR: %s: %v", where, err)
}

// maxTold bounds how many wrong sectors are described.
const maxTold = 20

func (f *findings) wrongSector(where string, at int64, want uint32, got []byte) {
	if f.wrong.Add(1) <= maxTold {
		f.log("WRONG BYTES: %s: sector at %#x: want generation %d, found %s", where, at, want, describe(got))
	}
}

func (f *findings) err() error {
	if e, w := f.errors.Load(), f.wrong.Load(); e+w > 0 {
		return fmt.Errorf("%d I/O errors, %d wrong sectors", e, w)
	}
	return nil
}

// openLoad opens a raw device, or makes a file of that size.
func openLoad(name, path string, raw bool, size int64, o options, f *findings) (_ *load, err error) {
	l := &load{name: name, unit: pageSize, found: f}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	if raw {
		l.unit = sectorSize
	} else {
		if l.cached, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
			return nil, err
		}
		if err := l.cached.Truncate(size); err != nil {
			return nil, err
		}
	}
	if l.direct, err = os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0); err != nil {
		return nil, err
	}
	// The last part is the probe's.
	share := size / (writersPerLoad + 1) / wholeBlock * wholeBlock
	for i := range int64(writersPerLoad) {
		l.writers = append(l.writers, newWriter(l, rand.New(rand.NewPCG(o.seed, uint64(i))), i*share, share, o.live/writersPerLoad))
	}
	l.probe = newProbe(l, writersPerLoad*share)
	return l, nil
}

const writersPerLoad = 3

// reopen opens the device or file of a load that has been closed.
func (l *load) reopen(path string) (err error) {
	if l.cached != nil {
		if l.cached, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
			return err
		}
	}
	l.direct, err = os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	return err
}

func (l *load) close() error {
	var errs []error
	for _, f := range []*os.File{l.direct, l.cached} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// writer owns a part of a load's space, so that what it last wrote is what
// must be there, whatever the others do.
type writer struct {
	l     *load
	base  int64
	share int64
	limit int64 // of live bytes
	rng   *rand.Rand
	buf   []byte
	check []byte

	busy  sync.Mutex // held over each request, and while reading back
	space space
	live  []span // oldest first
	alive int64  // bytes in live
	gen   uint32
	ops   int64
}

func newWriter(l *load, rng *rand.Rand, base, share, limit int64) *writer {
	return &writer{l: l, base: base, share: share, limit: limit, rng: rng, buf: aligned(maxRequest), check: aligned(maxRequest), space: space{}}
}

// run writes until ctx ends or a request fails.
func (w *writer) run(ctx context.Context) {
	for ctx.Err() == nil {
		w.busy.Lock()
		err := w.step()
		pause := time.Duration(w.rng.Int64N(int64(maxPause)))
		w.busy.Unlock()
		if err != nil {
			w.l.found.failed(w.l.name, err)
			return
		}
		time.Sleep(pause)
	}
}

// maxPause between two requests of a writer: the machine is to be busy with
// deaths, not with writing.
const maxPause = 2 * time.Millisecond

// flushEvery is how many requests a writer makes between two flushes.
const flushEvery = 2000

// step does one request: nearly always a write, mostly to space that was never
// written before.
func (w *writer) step() error {
	w.ops++
	switch n := w.rng.IntN(20); {
	case w.alive > w.limit:
		return w.discardOldest()
	case w.ops%flushEvery == 0:
		return w.flush()
	case n < 5 && len(w.live) > 0:
		return w.write(w.live[w.rng.IntN(len(w.live))].off) // again
	case n < 7 && len(w.live) > 0:
		s := w.live[w.rng.IntN(len(w.live))]
		first := s.off / pageSize * pageSize
		return w.read(first, min((s.off+s.n-first+pageSize-1)/pageSize*pageSize, maxRequest))
	}
	return w.write(w.base + w.rng.Int64N(w.share-maxRequest))
}

func (w *writer) flush() error {
	if err := w.l.direct.Sync(); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	return nil
}

// flushNow flushes beside the writer.
func (w *writer) flushNow() {
	if err := w.flush(); err != nil {
		w.l.found.failed(w.l.name, err)
	}
}

// write writes 512 bytes to 1 MiB, small requests as likely as large ones:
// straight to the device, or through the page cache, which the kernel writes
// out when it likes, or at once but without a flush.
func (w *writer) write(at int64) error {
	f, unit := w.l.direct, w.l.unit
	cached := w.l.cached != nil && w.rng.IntN(4) > 0
	if cached {
		f, unit = w.l.cached, sectorSize
	}
	at = at / unit * unit
	n := w.rng.Int64N(int64(sectorSize) << w.rng.IntN(12))
	n = max(unit, n/unit*unit)
	n = min(n, w.base+w.share-at)
	w.gen++
	fill(w.buf[:n], at, w.gen)
	if _, err := f.WriteAt(w.buf[:n], at); err != nil {
		return err
	}
	if cached && w.rng.IntN(8) == 0 {
		if err := unix.SyncFileRange(int(f.Fd()), at, n, unix.SYNC_FILE_RANGE_WRITE); err != nil {
			return fmt.Errorf("start writing out: %w", err)
		}
	}
	w.space.set(at, n, w.gen)
	w.live = append(w.live, span{at, n})
	w.alive += n
	return nil
}

// wholeBlock is the largest block of an image.
const wholeBlock = 2 << 20

// discardOldest gives the oldest spans back. What they held reads zero.
func (w *writer) discardOldest() error {
	for w.alive > w.limit/2 && len(w.live) > 0 {
		s := w.live[0]
		w.live = w.live[1:]
		w.alive -= s.n
		off, end := s.off, s.off+s.n
		if w.l.cached == nil && w.rng.IntN(4) == 0 { // whole blocks of the image, whose space is freed
			off, end = off/wholeBlock*wholeBlock, (end+wholeBlock-1)/wholeBlock*wholeBlock
		}
		if err := w.discard(off, end-off); err != nil {
			return fmt.Errorf("discard %d bytes at %#x: %w", end-off, off, err)
		}
		w.space.set(off, end-off, 0)
	}
	if w.l.cached != nil && w.rng.IntN(2) == 0 {
		return w.trim()
	}
	return nil
}

// trim has the filesystem discard what it does not use, in a part of the volume.
func (w *writer) trim() error {
	const part = 4 << 30
	if err := fitrim(w.l.cached, w.rng.Int64N(volumeSize/part)*part, part); err != nil {
		return fmt.Errorf("trim: %w", err)
	}
	return nil
}

// discard punches a hole: into a file; or into a device, as a discard or as
// zeros, of which this driver promises the same.
func (w *writer) discard(off, n int64) error {
	if w.l.cached != nil {
		return unix.Fallocate(int(w.l.cached.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	}
	if w.rng.IntN(2) == 0 {
		return blkDiscard(w.l.direct, off, n)
	}
	return unix.Fallocate(int(w.l.direct.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// read reads from the device and compares.
func (w *writer) read(off, n int64) error {
	p := w.check[:n]
	if _, err := w.l.direct.ReadAt(p, off); err != nil {
		return err
	}
	w.space.compare(p, off, func(at int64, want uint32, got []byte) { w.l.found.wrongSector(w.l.name, at, want, got) })
	return nil
}

// verify reads everything back that was ever written or discarded, through
// O_DIRECT and out of an empty cache, while no request is under way.
func (w *writer) verify() (read int64, err error) {
	w.busy.Lock()
	defer w.busy.Unlock()
	if w.l.cached != nil {
		// What is dirty is written out by the direct reads.
		if err := unix.Fadvise(int(w.l.cached.Fd()), w.base, w.share, unix.FADV_DONTNEED); err != nil {
			return 0, fmt.Errorf("drop the cache: %w", err)
		}
	}
	for _, s := range w.space.runs(maxRequest) {
		if err := w.read(s.off, s.n); err != nil {
			return read, err
		}
		read += s.n
	}
	w.space.forgetZeros()
	return read, nil
}
