package pool

import (
	"context"
	"errors"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// The figures are those of the pool, and follow it.
func TestWatch(t *testing.T) {
	s, p := newSet(t, func(o *Options) { o.Reserve = 5 << 20 })
	for _, name := range []string{"a", "b"} {
		if _, err := s.CreateVolume(t.Context(), Spec{Name: name, Size: 100 << 20}); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var free atomic.Int64
		free.Store(4 * gib)
		p.disk = func() (physical, error) { return physical{total: 10 * gib, free: free.Load()}, nil }
		w := s.Watch(ctx, WatchOptions{Volumes: true})
		time.Sleep(time.Second)
		f := w.Figures()[0]
		if f.Pool != "p" || f.Err != nil || f.At.IsZero() || f.Total != 10*gib || f.Free != 4*gib || f.Reserve != 5<<20 {
			t.Errorf("%+v", f)
		}
		if f.Committed < 200<<20 || f.Committed > 300<<20 || f.Available < gib {
			t.Errorf("committed %d, available %d", f.Committed, f.Available)
		}
		c := f.Census
		if c.Volumes != 2 || c.Logical != 200<<20 || c.Allocated < 2*4<<20 || c.Allocated > 20<<20 || c.At.IsZero() {
			t.Errorf("%+v", c)
		}
		free.Store(gib)
		time.Sleep(time.Minute)
		if f := w.Figures()[0]; f.Free != gib {
			t.Errorf("%+v", f)
		}
	})
}

// Without the controller's figures no record is read.
func TestWatchOfANode(t *testing.T) {
	s, p := newSet(t)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		p.disk = func() (physical, error) { return physical{total: 10 * gib, free: gib}, nil }
		w := s.Watch(ctx, WatchOptions{})
		time.Sleep(time.Hour)
		if f := w.Figures()[0]; f.Free != gib || f.Committed != 0 || !f.Census.At.IsZero() || time.Since(f.At) > 30*time.Second {
			t.Errorf("%+v", f)
		}
	})
}

// A share that hangs is said to, once its patience is over; one look hangs with
// it, and nobody who asks for the figures. When it answers, all is well again.
func TestWatchOfAShareThatHangs(t *testing.T) {
	s, p := newSet(t)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		back := make(chan struct{})
		var looks atomic.Int64
		var hangs atomic.Bool
		p.disk = func() (physical, error) {
			looks.Add(1)
			if hangs.Load() {
				<-back
			}
			return physical{total: 10 * gib, free: gib}, nil
		}
		w := s.Watch(ctx, WatchOptions{Every: time.Minute, Patience: 10 * time.Second})
		time.Sleep(time.Second)
		hangs.Store(true)
		seen := w.Figures()[0].At
		time.Sleep(65 * time.Second)
		if f := w.Figures()[0]; f.Err != nil {
			t.Errorf("a look is under way, and has its time: %v", f.Err)
		}
		time.Sleep(time.Hour)
		f := w.Figures()[0]
		if !errors.Is(f.Err, ErrAway) || f.At != seen || f.Total != 10*gib {
			t.Errorf("%+v", f)
		}
		if n := looks.Load(); n != 2 {
			t.Errorf("%d looks at a share that hangs", n)
		}
		hangs.Store(false)
		close(back)
		time.Sleep(time.Second)
		if f := w.Figures()[0]; f.Err != nil || f.At == seen {
			t.Errorf("%+v", f)
		}
	})
}

// One that fails is not taken for one that hangs, or for full.
func TestWatchOfAShareThatFails(t *testing.T) {
	s, p := newSet(t)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		p.disk = func() (physical, error) { return physical{}, syscall.ESTALE }
		w := s.Watch(ctx, WatchOptions{})
		time.Sleep(time.Second)
		if f := w.Figures()[0]; !errors.Is(f.Err, syscall.ESTALE) || !f.At.IsZero() {
			t.Errorf("%+v", f)
		}
	})
}
