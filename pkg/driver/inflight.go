package driver

import (
	"context"
	"fmt"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

// inflight runs the work of this process that changes something, at most one
// piece per key (I-DRV-1, I-DRV-2).
type inflight struct {
	limit time.Duration // after which work is told to give up

	mu      sync.Mutex // guards what follows
	running map[string]job
	stopped bool
	idle    *sync.Cond // signalled when a job ends
}

type job struct {
	what  string
	since time.Time
}

func newInflight(limit time.Duration) *inflight {
	f := &inflight{limit: limit, running: make(map[string]job)}
	f.idle = sync.NewCond(&f.mu)
	return f
}

// begin enters the key or says why it cannot.
func (f *inflight) begin(key, what string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped {
		return errStopping
	}
	if j, ok := f.running[key]; ok {
		return fmt.Errorf("%w: %s has been running for %v; try again later",
			errPending, j.what, time.Since(j.since).Round(time.Millisecond))
	}
	f.running[key] = job{what: what, since: time.Now()}
	return nil
}

func (f *inflight) end(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.running, key)
	f.idle.Broadcast()
}

// drain refuses new work and waits for what runs, until ctx is done.
func (f *inflight) drain(ctx context.Context) error {
	defer context.AfterFunc(ctx, f.idle.Broadcast)()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stopped = true
	for len(f.running) > 0 {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%d calls still running: %w", len(f.running), err)
		}
		f.idle.Wait()
	}
	return nil
}

// run does work under key and waits for it as long as the caller does.
func run[T any](ctx context.Context, f *inflight, key, what string, work func(context.Context) (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	var zero T
	if err := f.begin(key, what); err != nil {
		return zero, err
	}
	done := make(chan result, 1)
	detached, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.limit)
	go func() {
		defer cancel()
		var r result
		r.err = guard(detached, func() (err error) {
			r.value, err = work(detached)
			return err
		})
		f.end(key)
		if ctx.Err() != nil {
			klog.FromContext(ctx).Info("Work ended after its caller had left", "code", codeOf(what, r.err).String(), "reason", reason(r.err))
		}
		done <- r
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return zero, fmt.Errorf("%w: %s goes on; try again later", errPending, what)
	}
}

// only is run for work that has no result but its error.
func only(ctx context.Context, f *inflight, key, what string, work func(context.Context) error) error {
	_, err := run(ctx, f, key, what, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, work(ctx)
	})
	return err
}
