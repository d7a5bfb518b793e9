package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// benchOptions are those of qemu-img bench, and with the same meaning.
type benchOptions struct {
	write         bool
	count         int
	depth         int
	size          sizeFlag
	step          sizeFlag
	offset        sizeFlag
	flushInterval int
	quiet         bool
}

// benchResult is what bench prints as JSON.
type benchResult struct {
	Requests  int     `json:"requests"`
	Bytes     int64   `json:"bytes"`
	Flushes   int     `json:"flushes"`
	Seconds   float64 `json:"seconds"`
	PerSecond float64 `json:"requestsPerSecond"`
	MBPerS    float64 `json:"megabytesPerSecond"`
	// Latency of a request in microseconds, flushes apart.
	Latency latency `json:"latencyMicroseconds"`
}

type latency struct {
	Median       float64 `json:"median"`
	P99          float64 `json:"p99"`
	Max          float64 `json:"max"`
	MedianFlush  float64 `json:"medianFlush"`
	LongestFlush float64 `json:"longestFlush"`
}

func (a *app) benchCommand(ctx context.Context) *cobra.Command {
	o := benchOptions{count: 75000, depth: 64, size: 4096}
	cmd := &cobra.Command{
		Use:   "bench PATH",
		Short: "Measure how fast an image can be read or written",
		Long: `Measure an image: count requests of one size, depth at once, one step apart from
each other, round and round the disk. A step that is larger than the disk's
data lies far apart makes the requests as good as random.

The image is read, unless --write is given: then what it holds is overwritten.

The options are those of qemu-img bench, so that the two can be compared.`,
		Example: `  vhdxctl bench disk.vhdx
  vhdxctl bench -c 20000 -d 8 -S 123456K disk.vhdx
  vhdxctl bench -w -c 1024 -d 4 -s 1M --flush-interval 16 scratch.vhdx`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			return a.bench(ctx, args[0], o)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.write, "write", "w", false, "write, over whatever the image holds")
	f.IntVarP(&o.count, "count", "c", o.count, "requests")
	f.IntVarP(&o.depth, "depth", "d", o.depth, "requests at once, 1 to 1024")
	f.VarP(&o.size, "request-size", "s", "bytes of a request, up to 64M (default 4K)")
	f.VarP(&o.step, "step", "S", "distance between requests (default their size)")
	f.VarP(&o.offset, "offset", "o", "where to begin")
	f.IntVar(&o.flushInterval, "flush-interval", 0, "with --write: flush after so many requests, once they are done")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "no progress bar")
	return cmd
}

var errOverwritten = errors.New("ended early")

const (
	maxRequest = 64 << 20
	maxDepth   = 1024
	maxBuffers = 1 << 30
)

func (o *benchOptions) check() error {
	if o.step == 0 {
		o.step = o.size
	}
	switch {
	case o.size <= 0 || o.size > maxRequest || o.size%512 != 0:
		return fmt.Errorf("--request-size %d: want a multiple of 512 up to 64M", o.size)
	case o.step%512 != 0 || o.offset%512 != 0:
		return errors.New("--step and --offset are multiples of 512")
	case o.count <= 0:
		return fmt.Errorf("--count %d: want at least 1", o.count)
	case o.depth < 1 || o.depth > maxDepth || int64(o.depth)*int64(o.size) > maxBuffers:
		return fmt.Errorf("--depth %d: want 1 to %d, and no more than %s for all requests together", o.depth, maxDepth, formatSize(maxBuffers))
	case o.flushInterval < 0 || o.flushInterval > 0 && !o.write:
		return errors.New("--flush-interval goes with --write")
	case o.flushInterval > 0 && o.flushInterval < o.depth:
		return fmt.Errorf("--flush-interval %d is less than the %d requests at once", o.flushInterval, o.depth)
	}
	return nil
}

func (a *app) bench(ctx context.Context, path string, o benchOptions) error {
	im, err := a.openImage(path, vhdx.OpenOptions{ReadOnly: !o.write})
	if err != nil {
		return err
	}
	b := &bench{im: im, o: o, bar: a.progress(ctx, o.quiet, "measuring")}
	r, err := b.run(ctx)
	b.bar.end()
	if errors.Is(err, context.Canceled) && o.write {
		err = fmt.Errorf("%w: %w", errOverwritten, err)
	}
	if err = errors.Join(err, im.Close()); err != nil {
		return err
	}
	a.print(r, func(w io.Writer) {
		verb := "read"
		if o.write {
			verb = "written"
		}
		fmt.Fprintf(w, "%d requests of %s %s, %d at once, in %.3f s\n", r.Requests, formatSize(int64(o.size)), verb, o.depth, r.Seconds)
		fmt.Fprintf(w, "%.0f requests/s, %.1f MB/s; latency median %.0f µs, 99%% %.0f µs, longest %.0f µs\n", r.PerSecond, r.MBPerS, r.Latency.Median, r.Latency.P99, r.Latency.Max)
		if r.Flushes > 0 {
			fmt.Fprintf(w, "%d flushes, median %.0f µs, longest %.0f µs\n", r.Flushes, r.Latency.MedianFlush, r.Latency.LongestFlush)
		}
	})
	return nil
}

// bench is a measurement under way.
type bench struct {
	im  *vhdx.Image
	o   benchOptions
	bar *progress

	next    atomic.Int64
	took    []time.Duration // by request
	flushes []time.Duration
}

func (b *bench) run(ctx context.Context) (benchResult, error) {
	if b.im.Size() < int64(b.o.size) {
		return benchResult{}, fmt.Errorf("a request of %d bytes on a disk of %d", b.o.size, b.im.Size())
	}
	mem, err := unix.Mmap(-1, 0, b.o.depth*int(b.o.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_POPULATE)
	if err != nil {
		return benchResult{}, err
	}
	defer unix.Munmap(mem) //nolint:errcheck // of our own mapping
	for i := range mem {
		mem[i] = byte(i>>9 + 1)
	}
	b.took = make([]time.Duration, b.o.count)
	interval := b.o.count
	if b.o.flushInterval > 0 {
		interval = b.o.flushInterval
	}
	began := time.Now()
	for first := 0; first < b.o.count; first += interval {
		if err := b.batch(ctx, mem, first, min(first+interval, b.o.count)); err != nil {
			return benchResult{}, err
		}
		if b.o.flushInterval == 0 {
			continue
		}
		at := time.Now()
		if err := b.im.Flush(); err != nil {
			return benchResult{}, err
		}
		b.flushes = append(b.flushes, time.Since(at))
	}
	return b.result(time.Since(began)), nil
}

// batch carries out requests [first, end), depth at once.
func (b *bench) batch(ctx context.Context, mem []byte, first, end int) error {
	b.next.Store(int64(first))
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var wg sync.WaitGroup
	size := int(b.o.size)
	for i := range min(b.o.depth, end-first) {
		buf := mem[i*size : (i+1)*size : (i+1)*size]
		wg.Go(func() {
			for n := b.next.Add(1) - 1; n < int64(end) && ctx.Err() == nil; n = b.next.Add(1) - 1 {
				if err := b.request(n, buf); err != nil {
					stop(err)
				}
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return b.bar.report(int64(end)*int64(size), int64(b.o.count)*int64(size))
}

func (b *bench) request(n int64, buf []byte) error {
	off := b.place(n)
	at := time.Now()
	var err error
	if b.o.write {
		_, err = b.im.WriteAt(buf, off)
	} else {
		_, err = b.im.ReadAt(buf, off)
	}
	b.took[n] = time.Since(at)
	return err
}

// place is where a request goes: round and round the disk.
func (b *bench) place(n int64) int64 {
	size := int64(b.o.size)
	room := uint64(b.im.Size() / size * size)
	hi, lo := bits.Mul64(uint64(n)%room, uint64(b.o.step)%room)
	off := (bits.Rem64(hi, lo, room) + uint64(b.o.offset)%room) % room
	return int64(min(off, room-uint64(size)))
}

func (b *bench) result(took time.Duration) benchResult {
	r := benchResult{Requests: b.o.count, Bytes: int64(b.o.count) * int64(b.o.size), Flushes: len(b.flushes), Seconds: took.Seconds()}
	r.PerSecond = float64(r.Requests) / r.Seconds
	r.MBPerS = float64(r.Bytes) / r.Seconds / 1e6
	slices.Sort(b.took)
	slices.Sort(b.flushes)
	r.Latency = latency{
		Median: quantile(b.took, 0.5), P99: quantile(b.took, 0.99), Max: quantile(b.took, 1),
		MedianFlush: quantile(b.flushes, 0.5), LongestFlush: quantile(b.flushes, 1),
	}
	return r
}

// quantile of sorted times, in microseconds.
func quantile(sorted []time.Duration, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return float64(sorted[int(q*float64(len(sorted)-1))].Nanoseconds()) / 1e3
}
