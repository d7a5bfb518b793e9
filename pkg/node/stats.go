package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/helper"
)

// statsAge is how long an answer of statfs is good for. kubelet asks about
// once a minute for each path, several tools ask on top.
const statsAge = 10 * time.Second

// statsCell keeps the last answer for a volume and lets one helper at most run
// for it, whoever asks however often (I-NODE-10).
type statsCell struct {
	mu      sync.Mutex
	last    Stats
	at      time.Time     // of last; zero: none yet
	running chan struct{} // closed when the helper has ended
	err     error         // of the last helper
}

// Stats says how full the volume is. It never touches the share.
func (m *Manager) Stats(ctx context.Context, volumeID, path string) (Stats, error) {
	m.mu.Lock()
	v := m.volumes[volumeID]
	var e entry
	var size int64
	up := false
	var waiting error
	if v != nil {
		e, size, up, waiting = v.entry.clone(), v.size, v.up(), v.waiting
	}
	m.mu.Unlock()
	if waiting != nil {
		return Stats{}, fmt.Errorf("volume %s: %w", volumeID, unserved(waiting))
	}
	path = realPath(path)
	_, published := e.target(path)
	if !up || !published && !slices.Contains(e.Staging, path) {
		return Stats{}, fmt.Errorf("volume %s at %s: %w", volumeID, path, ErrNotFound)
	}
	if e.Block {
		return Stats{Block: true, Bytes: Usage{Total: size}}, nil
	}
	t, err := readMounts()
	if err != nil {
		return Stats{}, err
	}
	if !e.owns(t.at(path)) {
		return Stats{}, fmt.Errorf("volume %s: %w: nothing of it is mounted at %s", volumeID, ErrNotFound, path)
	}
	return v.stats.get(ctx, m.cfg.Deadlines.Stat, func(ctx context.Context) ([]byte, error) {
		return m.tools.self(ctx, m.cfg.Deadlines.Stat, cmdStatfs, path)
	})
}

// get answers from the cache, or waits for the one helper there is.
func (c *statsCell) get(ctx context.Context, deadline time.Duration, statfs func(context.Context) ([]byte, error)) (Stats, error) {
	c.mu.Lock()
	if !c.at.IsZero() && time.Since(c.at) < statsAge {
		defer c.mu.Unlock()
		return c.last, nil
	}
	if c.running == nil {
		c.running = make(chan struct{})
		go c.ask(context.WithoutCancel(ctx), statfs, c.running)
	}
	running := c.running
	c.mu.Unlock()
	patience := time.NewTimer(deadline + helper.KillGrace)
	defer patience.Stop()
	select {
	case <-running:
	case <-patience.C:
		return Stats{}, fmt.Errorf("statfs: %w", ErrStuck)
	case <-ctx.Done():
		return Stats{}, ctx.Err()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last, c.err
}

// ask runs the helper. As long as a stuck one is there no other is started.
func (c *statsCell) ask(ctx context.Context, statfs func(context.Context) ([]byte, error), running chan struct{}) {
	var s Stats
	out, err := statfs(ctx)
	if err == nil {
		err = json.Unmarshal(out, &s)
	}
	c.mu.Lock()
	c.last, c.err = s, err
	if err == nil {
		c.at = time.Now()
	}
	c.mu.Unlock()
	if stuck, ok := errors.AsType[*helper.StuckError](err); ok {
		<-stuck.Gone
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running = nil
	close(running)
}

// expire makes the next answer a fresh one.
func (c *statsCell) expire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = time.Time{}
}
