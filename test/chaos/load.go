package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	sectorSize = 512
	pageSize   = 4096
	maxRequest = 1 << 20
)

// A load writes to one device or file and knows what every sector must hold.
type load struct {
	name   string
	direct *os.File // O_DIRECT: what is read comes from the device
	cached *os.File // nil for a raw device
	size   int64
	unit   int64 // of direct requests

	writers []*writer
	errors  atomic.Int64
	wrong   atomic.Int64
}

// openLoad opens a raw device, or makes a file of that size.
func openLoad(name, path string, raw bool, size int64, writers int, live int64) (*load, error) {
	l := &load{name: name, size: size, unit: pageSize}
	flags := os.O_RDWR
	if raw {
		l.unit = sectorSize
	} else {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		if err := f.Truncate(size); err != nil {
			f.Close()
			return nil, err
		}
		l.cached = f
	}
	f, err := os.OpenFile(path, flags|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	l.direct = f
	for i := range writers {
		share := size / int64(writers) / maxRequest * maxRequest
		l.writers = append(l.writers, newWriter(l, i, int64(i)*share, share, live/int64(writers)))
	}
	return l, nil
}

func (l *load) close() {
	l.direct.Close()
	if l.cached != nil {
		l.cached.Close()
	}
}

// span is a range that a writer has touched.
type span struct {
	off, n int64
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

	busy    sync.Mutex       // held over each request, and while reading back
	written map[int64]uint32 // sector -> generation, 0: zeros
	live    []span           // oldest first
	alive   int64            // bytes in live
	gen     uint32
	ops     int64

	since    atomic.Int64 // the time of the last kill, ns; 0: its gap is known
	gap      atomic.Int64 // from it to the end of the first request that began after it, ns
	progress chan struct{}
}

func newWriter(l *load, i int, base, share, limit int64) *writer {
	return &writer{
		l: l, base: base, share: share, limit: limit,
		rng: rand.New(rand.NewPCG(uint64(base), uint64(i))),
		buf: aligned(maxRequest), check: aligned(maxRequest),
		written: map[int64]uint32{}, progress: make(chan struct{}, 1),
	}
}

func aligned(n int) []byte {
	b := make([]byte, n+pageSize)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (pageSize - 1)
	return b[skip : skip+n]
}

// run writes until ctx ends.
func (w *writer) run(ctx context.Context) {
	for ctx.Err() == nil {
		w.busy.Lock()
		began := time.Now().UnixNano()
		err := w.step()
		ended := time.Now().UnixNano()
		w.busy.Unlock()
		if err != nil {
			w.l.errors.Add(1)
			fmt.Fprintf(os.Stderr, "%s: I/O error: %v\n", w.l.name, err)
			return
		}
		if killed := w.since.Load(); killed != 0 && began > killed {
			w.gap.Store(ended - killed)
			w.since.Store(0)
			select {
			case w.progress <- struct{}{}:
			default:
			}
		}
	}
}

// step does one request: nearly always a write, mostly to space that was never
// written before; flushes are rare.
func (w *writer) step() error {
	w.ops++
	switch {
	case w.alive > w.limit:
		return w.discardOldest()
	case w.ops%500 == 0:
		return w.l.direct.Sync()
	case w.rng.IntN(10) < 7:
		return w.write(w.base + w.rng.Int64N(w.share))
	case len(w.live) > 0:
		return w.write(w.live[w.rng.IntN(len(w.live))].off)
	}
	return w.write(w.base + w.rng.Int64N(w.share))
}

func (w *writer) write(at int64) error {
	cached := w.l.cached != nil && w.rng.IntN(4) > 0
	unit := w.l.unit
	if cached {
		unit = sectorSize
	}
	n := int64(1) << w.rng.IntN(21) // 1 byte to 1 MiB, small ones as likely as large ones
	n = max(unit, n/unit*unit)
	at = at / unit * unit
	n = min(n, w.base+w.share-at)
	w.gen++
	fill(w.buf[:n], at, w.gen)
	f := w.l.direct
	if cached {
		f = w.l.cached
	}
	if _, err := f.WriteAt(w.buf[:n], at); err != nil {
		return err
	}
	if cached && w.rng.IntN(8) == 0 {
		// The kernel writes it out without a flush of the device.
		if err := unix.SyncFileRange(int(f.Fd()), at, n, unix.SYNC_FILE_RANGE_WRITE); err != nil {
			return err
		}
	}
	w.remember(at, n, w.gen)
	return nil
}

func (w *writer) remember(at, n int64, gen uint32) {
	for s := at / sectorSize; s < (at+n)/sectorSize; s++ {
		w.written[s] = gen
	}
	if gen > 0 {
		w.live = append(w.live, span{at, n})
		w.alive += n
	}
}

// discardOldest gives the oldest spans back. What they held reads zero.
func (w *writer) discardOldest() error {
	for w.alive > w.limit/2 && len(w.live) > 0 {
		s := w.live[0]
		w.live = w.live[1:]
		w.alive -= s.n
		// Whole pages only: a partial page is zeroed by a write.
		first, last := (s.off+pageSize-1)/pageSize*pageSize, (s.off+s.n)/pageSize*pageSize
		if first >= last {
			continue
		}
		if err := w.discard(first, last-first); err != nil {
			return fmt.Errorf("discard: %w", err)
		}
		w.remember(first, last-first, 0)
	}
	return nil
}

func (w *writer) discard(off, n int64) error {
	if w.l.cached != nil {
		return unix.Fallocate(int(w.l.cached.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	}
	// On a block device this is a discard that promises zeros.
	return unix.Fallocate(int(w.l.direct.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// verify reads everything back that was ever written or discarded, through
// O_DIRECT, while no request is under way.
func (w *writer) verify() (int64, error) {
	w.busy.Lock()
	defer w.busy.Unlock()
	var total int64
	for _, s := range w.runs() {
		for off := s.off; off < s.off+s.n; off += maxRequest {
			n := min(maxRequest, s.off+s.n-off)
			if _, err := w.l.direct.ReadAt(w.check[:n], off); err != nil {
				return total, err
			}
			total += n
			w.compare(off, n)
		}
	}
	w.forgetZeros()
	return total, nil
}

// runs returns what has been touched as page-aligned ranges.
func (w *writer) runs() []span {
	pages := map[int64]bool{}
	for s := range w.written {
		pages[s*sectorSize/pageSize] = true
	}
	return mergePages(pages)
}

func (w *writer) compare(off, n int64) {
	for at := int64(0); at < n; at += sectorSize {
		gen, known := w.written[(off+at)/sectorSize]
		if !known {
			continue // never touched by this writer
		}
		if got := w.check[at : at+sectorSize]; !holds(got, off+at, gen) {
			if w.l.wrong.Add(1) <= 10 {
				fmt.Fprintf(os.Stderr, "%s: sector at %#x: want generation %d, found %s\n", w.l.name, off+at, gen, describe(got))
			}
		}
	}
}

// forgetZeros drops what has been discarded and read back as zero, so that the
// next reading back takes no longer than this one.
func (w *writer) forgetZeros() {
	for s, gen := range w.written {
		if gen == 0 {
			delete(w.written, s)
		}
	}
}
