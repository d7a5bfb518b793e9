package pool

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"
)

// Figures are what is known of a pool, from the last looks at it.
type Figures struct {
	Pool string
	// Err says why the pool cannot be looked at now: it is away, it fails, or
	// it does not answer. Nil: the last look came back in time, or is still
	// within its time.
	Err error
	// At is when the bytes below were seen; zero: never yet.
	At time.Time
	// Total and Free of the filesystem; Reserve is what is never promised of it.
	Total, Free, Reserve int64
	// Committed and Available are as in [Capacity], if WatchOptions.Volumes.
	Committed, Available int64
	Census               Census
}

// Census is the sum over all volumes of a pool.
type Census struct {
	At      time.Time // zero: never yet
	Volumes int64
	// Logical is what their devices have, Allocated what their images take in the
	// filesystem, frozen ones and those of deleted volumes included, and Pinned
	// what of that is kept for snapshots, and for clones of them.
	Logical, Allocated, Pinned int64
}

// WatchOptions say how pools are watched. The zero value of each duration is
// its default.
type WatchOptions struct {
	// Every is the pause between looks at a pool, default 30 s; Patience is how
	// long one may take until the pool counts as not answering, default 10 s.
	Every, Patience time.Duration
	// Volumes: look at what is promised, too, and count the volumes now and
	// then. That reads every record, so it is for the controller.
	Volumes bool
	// CensusEvery is the pause between two counts, default 5 min, and ten times
	// what the last one took at least.
	CensusEvery time.Duration
}

// Watch looks at pools in the background, so that whoever asks for their
// figures never waits for a share. A look that hangs is waited for by nobody
// but the goroutine that made it; until it ends there is no other at that pool.
type Watch struct {
	o   WatchOptions
	set *Set

	mu      sync.Mutex
	figures []Figures // in the order of Set.names
}

// Watch watches all pools until ctx ends.
func (s *Set) Watch(ctx context.Context, o WatchOptions) *Watch {
	o.Every = cmp.Or(o.Every, 30*time.Second)
	o.Patience = cmp.Or(o.Patience, 10*time.Second)
	o.CensusEvery = cmp.Or(o.CensusEvery, 5*time.Minute)
	w := &Watch{o: o, set: s, figures: make([]Figures, len(s.names))}
	for i, name := range s.names {
		w.figures[i].Pool = name
		go w.looks(ctx, i, name)
		if o.Volumes {
			go w.counts(ctx, i, name)
		}
	}
	return w
}

// Figures are the newest there are. It waits for nothing.
func (w *Watch) Figures() []Figures {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]Figures(nil), w.figures...)
}

func (w *Watch) change(i int, do func(f *Figures)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	do(&w.figures[i])
}

// looks looks at one pool again and again.
func (w *Watch) looks(ctx context.Context, i int, name string) {
	for {
		seen := make(chan func(*Figures), 1)
		go func() { seen <- w.look(ctx, name) }()
		late := time.NewTimer(w.o.Patience)
		for waiting := true; waiting; {
			select {
			case put := <-seen:
				w.change(i, put)
				waiting = false
			case <-late.C:
				w.change(i, func(f *Figures) {
					f.Err = fmt.Errorf("pool %s: %w: it has not answered for %v", name, ErrAway, w.o.Patience)
				})
			case <-ctx.Done():
				return
			}
		}
		late.Stop()
		if !pause(ctx, w.o.Every) {
			return
		}
	}
}

// look asks the pool, which may take for ever, and returns what it changes.
func (w *Watch) look(ctx context.Context, name string) func(*Figures) {
	p, err := w.set.Pool(name)
	if err != nil {
		return func(f *Figures) { f.Err = err }
	}
	var c Capacity
	var ph physical
	if ph, err = p.disk(); err == nil && w.o.Volumes {
		c, err = p.Capacity(ctx)
	}
	if err != nil {
		return func(f *Figures) { f.Err = fmt.Errorf("pool %s: %w", name, err) }
	}
	now := time.Now()
	return func(f *Figures) {
		f.Err, f.At = nil, now
		f.Total, f.Free, f.Reserve = ph.total, ph.free, p.reserve
		f.Committed, f.Available = c.Committed, c.Available
	}
}

// counts counts one pool's volumes again and again. A count that a dead share
// holds up waits with it.
func (w *Watch) counts(ctx context.Context, i int, name string) {
	for {
		began := time.Now()
		rest := w.o.CensusEvery
		p, err := w.set.Pool(name)
		if err != nil {
			rest = w.o.Every // it may come back
		} else if c, err := p.census(ctx); err == nil {
			w.change(i, func(f *Figures) { f.Census = c })
		} // else: the looks tell what is wrong with it
		if !pause(ctx, max(rest, 10*time.Since(began))) {
			return
		}
	}
}

// pause waits, or reports that ctx has ended.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// census reads every record, and asks the filesystem for the space of each image
// (I-POOL-20).
func (p *Pool) census(ctx context.Context) (Census, error) {
	var c Census
	err := p.eachLineage(ctx, func(_ string, r *record, err error) error {
		if damaged(err) {
			return nil
		}
		if err == nil {
			err = p.count(r, &c)
		}
		return err
	})
	if err != nil {
		return Census{}, fmt.Errorf("count the volumes of pool %s: %w", p.name, err)
	}
	c.At = time.Now()
	return c, nil
}

func (p *Pool) count(r *record, c *Census) error {
	if !r.Deleting && !r.Retired {
		c.Volumes++
		c.Logical += r.Size
	}
	pinned, err := p.pinned(r)
	if err != nil {
		return err
	}
	for _, l := range append(r.layers(), layer{Image: r.Image}) {
		if l.Image == "" {
			continue
		}
		bytes, err := p.allocated(l.Image)
		if err != nil {
			continue // an image that is not there takes nothing; Problems names it
		}
		c.Allocated += bytes
		if pinned[l.Image] {
			c.Pinned += bytes
		}
	}
	return nil
}

// pinned are the images of a record that are kept for snapshots and for what
// other volumes have made of them.
func (p *Pool) pinned(r *record) (map[string]bool, error) {
	images := map[string]bool{}
	needed, err := p.needed(r)
	if err != nil {
		return nil, err
	}
	for _, l := range needed {
		images[l.Image] = true
	}
	for i, l := range r.Old {
		used, err := p.hasChildren(l.Image)
		if err != nil {
			return nil, err
		}
		for _, below := range r.Old[:i+1] {
			images[below.Image] = images[below.Image] || used
		}
	}
	return images, nil
}
