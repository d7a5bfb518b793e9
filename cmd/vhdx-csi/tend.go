package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// When the controller looks for images that nobody needs.
const (
	tendAllEvery  = time.Hour
	tendSoonAfter = 2 * time.Second // of the deletion of a snapshot; others may follow it
	tendRetry     = time.Minute     // of a volume that was in somebody's hands
)

// tender frees what nobody needs of the volumes' layers, one volume at a time.
// Merging reads and writes the share only half of the time.
type tender struct {
	set    *pool.Set
	follow func(ctx context.Context, volume string) error
	done   func(pool.Tended)

	wake  chan struct{}
	mu    sync.Mutex
	queue map[string]bool // volumes to look at
}

func newTender(set *pool.Set, follow func(context.Context, string) error, done func(pool.Tended)) *tender {
	return &tender{set: set, follow: follow, done: done, wake: make(chan struct{}, 1), queue: map[string]bool{}}
}

// add has a volume looked at soon.
func (t *tender) add(volume string) {
	t.mu.Lock()
	t.queue[volume] = true
	t.mu.Unlock()
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// run works until ctx ends. The function that it returns waits for that.
func (t *tender) run(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		t.loop(ctx)
	}()
	return func() {
		cancel()
		<-ended
	}
}

func (t *tender) loop(ctx context.Context) {
	all := time.NewTicker(tendAllEvery)
	defer all.Stop()
	t.addAll(ctx)
	for wait := tendSoonAfter; ; wait = tendSoonAfter {
		if !t.work(ctx) {
			wait = tendRetry
		}
		select {
		case <-ctx.Done():
			return
		case <-all.C:
			t.addAll(ctx)
		case <-t.wake:
			sleep(ctx, tendSoonAfter)
		case <-after(wait, wait == tendRetry):
		}
	}
}

// after is time.After, or for ever.
func after(d time.Duration, ever bool) <-chan time.Time {
	if !ever {
		return nil
	}
	return time.After(d)
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (t *tender) addAll(ctx context.Context) {
	err := t.set.Untended(ctx, func(volume string) error {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.queue[volume] = true
		return nil
	})
	if err != nil && ctx.Err() == nil {
		klog.FromContext(ctx).Error(err, "Look for images that nobody needs")
	}
}

// work looks at every volume of the queue once, and reports whether nothing is
// left of it.
func (t *tender) work(ctx context.Context) bool {
	t.mu.Lock()
	batch := t.queue
	t.queue = map[string]bool{}
	t.mu.Unlock()
	for volume := range batch {
		if ctx.Err() != nil {
			return true
		}
		if err := t.tend(ctx, volume); err != nil {
			t.mu.Lock()
			t.queue[volume] = true
			t.mu.Unlock()
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.queue) == 0
}

func (t *tender) tend(ctx context.Context, volume string) error {
	log := klog.FromContext(ctx).WithValues("volume", volume)
	last := time.Now()
	done, err := t.set.Tend(ctx, volume, pool.Tender{
		Follow: t.follow,
		Progress: func(string, int64, int64) error {
			sleep(ctx, time.Since(last))
			last = time.Now()
			return ctx.Err()
		},
	})
	t.done(done)
	if done.Left != "" {
		t.add(done.Left)
	}
	if done.Removed+done.Rebuilt > 0 {
		log.Info("Freed images that nobody needs", "removed", done.Removed, "bytes", done.Freed, "merged", done.Rebuilt)
	}
	switch {
	case errors.Is(err, pool.ErrNotFound), ctx.Err() != nil:
		return nil
	case err != nil:
		log.Info("Images that nobody needs are not freed yet", "reason", err.Error())
	}
	return err
}
