package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-vhdx/csi-driver-vhdx/test/plugin"
)

type options struct {
	plugin string
	dir    string
	kills  int
	live   int64
	pause  time.Duration
}

// result is what a run has seen.
type result struct {
	kills  int
	hangs  int
	errors int64
	wrong  int64
	read   int64 // bytes read back and compared
	gaps   []time.Duration
	hung   []time.Duration // gaps after SIGSTOP, which the supervisor has to notice first
}

func (r *result) print(w io.Writer) {
	fmt.Fprintf(w, "%d kills (%d of them hangs), %d I/O errors, %d wrong sectors, %d MiB read back\n", r.kills, r.hangs, r.errors, r.wrong, r.read>>20)
	for _, g := range []struct {
		name string
		gaps []time.Duration
	}{{"gap after a kill", r.gaps}, {"gap after a hang", r.hung}} {
		if len(g.gaps) == 0 {
			continue
		}
		slices.Sort(g.gaps)
		at := func(q float64) time.Duration {
			return g.gaps[min(len(g.gaps)-1, int(q*float64(len(g.gaps))))].Round(100 * time.Microsecond)
		}
		fmt.Fprintf(w, "%s: p50 %v, p99 %v, longest %v\n", g.name, at(0.50), at(0.99), at(1))
	}
}

const volumeSize = 32 << 30

// run starts a plugin with three volumes, loads them and kills.
func run(ctx context.Context, o options) (_ *result, err error) {
	r := &result{}
	p, err := plugin.Start(ctx, plugin.Options{Binary: o.plugin, Dir: o.dir})
	if err != nil {
		return r, err
	}
	defer func() {
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, p.Stop(cleanup), plugin.Clean(cleanup, o.dir))
	}()
	loads, down, err := bringUp(ctx, p, o)
	defer func() { err = errors.Join(err, down()) }()
	if err != nil {
		return r, err
	}
	writing, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for _, l := range loads {
		for _, w := range l.writers {
			wg.Go(func() { w.run(writing) })
		}
	}
	err = r.killAll(ctx, p, loads, o)
	stop()
	wg.Wait()
	if err == nil {
		err = r.verify(loads)
	}
	for _, l := range loads {
		r.errors += l.errors.Load()
		r.wrong += l.wrong.Load()
		l.close()
	}
	if err == nil && (r.errors > 0 || r.wrong > 0) {
		err = fmt.Errorf("%d I/O errors and %d wrong sectors", r.errors, r.wrong)
	}
	return r, err
}

// bringUp makes the volumes; down takes them down again, and lets QEMU judge nothing but what is clean.
func bringUp(ctx context.Context, p *plugin.Process, o options) (loads []*load, down func() error, err error) {
	var volumes []*plugin.Volume
	down = func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		var errs []error
		for _, v := range volumes {
			errs = append(errs, v.Down(ctx), v.Delete(ctx))
		}
		return errors.Join(errs...)
	}
	for _, k := range []struct {
		name   string
		cap    *csi.VolumeCapability
		params map[string]string
	}{
		{"raw", plugin.Raw(), map[string]string{"blockSize": "1Mi", "logicalSectorSize": "512"}},
		{"ext4", plugin.Filesystem("ext4"), map[string]string{"blockSize": "1Mi"}},
		{"xfs", plugin.Filesystem("xfs"), map[string]string{"blockSize": "2Mi"}},
	} {
		v, err := p.Create(ctx, "chaos-"+k.name, volumeSize, k.cap, k.params)
		if err != nil {
			return loads, down, err
		}
		volumes = append(volumes, v)
		if err := v.Up(ctx); err != nil {
			return loads, down, err
		}
		path, raw := v.Target, true
		if k.name != "raw" {
			path, raw = filepath.Join(v.Target, "data"), false
		}
		l, err := openLoad(k.name, path, raw, volumeSize/2, 3, o.live)
		if err != nil {
			return loads, down, err
		}
		loads = append(loads, l)
	}
	return loads, down, nil
}

// killAll kills the worker o.kills times; every twentieth time it hangs first.
func (r *result) killAll(ctx context.Context, p *plugin.Process, loads []*load, o options) error {
	var writers []*writer
	for _, l := range loads {
		writers = append(writers, l.writers...)
	}
	for r.kills < o.kills {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(rand.Int64N(int64(o.pause)))):
		}
		pid, err := workerOf(p.PID())
		if err != nil {
			return err
		}
		hang := r.kills%20 == 19
		gap, err := r.killOnce(ctx, pid, hang, writers, p)
		if err != nil {
			return fmt.Errorf("kill %d: %w", r.kills+1, err)
		}
		r.kills++
		if hang {
			r.hangs++
			r.hung = append(r.hung, gap)
		} else {
			r.gaps = append(r.gaps, gap)
		}
		if err := r.verify(loads); err != nil {
			return fmt.Errorf("after kill %d: %w", r.kills, err)
		}
		for _, l := range loads {
			if l.errors.Load() > 0 || l.wrong.Load() > 0 {
				return fmt.Errorf("after kill %d: %s: %d I/O errors, %d wrong sectors", r.kills, l.name, l.errors.Load(), l.wrong.Load())
			}
		}
	}
	return nil
}

// stuck is when a gap counts as for ever.
const stuck = 30 * time.Second

func (r *result) killOnce(ctx context.Context, pid int, hang bool, writers []*writer, p *plugin.Process) (time.Duration, error) {
	signal := syscall.SIGKILL
	if hang {
		signal = syscall.SIGSTOP
	}
	for _, w := range writers {
		select {
		case <-w.progress:
		default:
		}
	}
	now := time.Now().UnixNano()
	for _, w := range writers {
		w.since.Store(now)
	}
	if err := syscall.Kill(pid, signal); err != nil {
		return 0, fmt.Errorf("signal %v to worker %d: %w", signal, pid, err)
	}
	timeout := time.NewTimer(stuck)
	defer timeout.Stop()
	var gap time.Duration
	for _, w := range writers {
		select {
		case <-w.progress:
			gap = max(gap, time.Duration(w.gap.Load()))
		case <-p.Done():
			return gap, errors.New("the plugin has ended: " + plugin.Tail(p.Dir, 20))
		case <-ctx.Done():
			return gap, ctx.Err()
		case <-timeout.C:
			return gap, fmt.Errorf("%s: no request done for %v; the plugin says: %s", w.l.name, stuck, plugin.Tail(p.Dir, 20))
		}
	}
	return cmp.Or(gap, 1), nil
}

// verify reads all loads back, all writers at once.
func (r *result) verify(loads []*load) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for _, l := range loads {
		for _, w := range l.writers {
			wg.Go(func() {
				n, err := w.verify()
				mu.Lock()
				defer mu.Unlock()
				r.read += n
				if err != nil {
					errs = append(errs, fmt.Errorf("%s: read back: %w", l.name, err))
				}
			})
		}
	}
	wg.Wait()
	return errors.Join(errs...)
}
