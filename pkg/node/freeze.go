package node

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/helper"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// FreezeLimit is the longest that a filesystem stays frozen.
const FreezeLimit = 30 * time.Second

// freezeMargin is how long before its end a freeze counts as over.
const freezeMargin = 100 * time.Millisecond

// frozen is a volume that takes no writes: its filesystem is frozen, or, where
// there is none, its image holds writes back.
type frozen struct {
	token string // of the freeze that is asked for by name; "": of a cut's own
	like  pool.Consistency
	talk  *helper.Talk // the process that will thaw; nil: a raw volume
	held  func()       // lets the writes of a raw volume go on
	since time.Time
	until time.Time

	melting sync.Mutex
	melted  bool // guarded by melting
}

// consistency is what the disk is like now, if nothing has ended the freeze.
func (f *frozen) consistency() pool.Consistency {
	if time.Now().After(f.until) {
		return pool.ConsistentCrash
	}
	return f.like
}

// freeze syncs and freezes what is mounted (I-NODE-12), or holds the writes of
// a raw volume back.
func (m *Manager) freeze(ctx context.Context, v *volume, token string, limit time.Duration) (*frozen, error) {
	if p := v.paused(); p.On() { // it would wait for what cannot be written
		return nil, fmt.Errorf("%w: %w", ErrPaused, p.Reason)
	}
	f := &frozen{token: token, like: pool.ConsistentCrash}
	if v.entry.Block {
		im, err := rotatable(v)
		if err != nil {
			return nil, err
		}
		if f.held, err = im.Hold(); err != nil {
			return nil, err
		}
		time.AfterFunc(limit, f.held)
		f.since, f.until = time.Now(), time.Now().Add(limit)
		return f, nil
	}
	path, err := m.mountedStaging(v)
	if err != nil {
		return nil, err
	}
	if err := m.markFrozen(v, true); err != nil {
		return nil, err
	}
	if f.talk, err = m.startFreeze(ctx, path, limit); err != nil {
		return nil, errors.Join(err, m.markFrozen(v, false))
	}
	f.like = pool.ConsistentFilesystem
	// The child has counted its limit from a little earlier.
	f.since, f.until = time.Now(), time.Now().Add(limit-min(freezeMargin, limit/2))
	m.step("frozen")
	return f, nil
}

func (m *Manager) startFreeze(ctx context.Context, path string, limit time.Duration) (*helper.Talk, error) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Deadlines.Sync)
	defer cancel()
	talk, err := helper.Start(m.tools.hold(ctx), cmdFreeze, path, strconv.FormatInt(limit.Milliseconds(), 10))
	if err != nil {
		return nil, err
	}
	if _, err := talk.Line(ctx); err != nil {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), helper.KillGrace)
		defer cancel()
		return nil, fmt.Errorf("freeze %s: %w", path, named(errors.Join(err, talk.End(last))))
	}
	return talk, nil
}

// thaw ends a freeze. One that its limit has ended is success: what was done
// meanwhile knows that from [frozen.consistency].
func (m *Manager) thaw(ctx context.Context, v *volume, f *frozen) error {
	if err := m.melt(ctx, f); err != nil || f.held != nil {
		return err
	}
	return m.markFrozen(v, false)
}

// melt ends a freeze, and may be called again.
func (m *Manager) melt(ctx context.Context, f *frozen) error {
	if f.held != nil {
		f.held()
		return nil
	}
	f.melting.Lock()
	defer f.melting.Unlock()
	if f.melted {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.cfg.Deadlines.Sync)
	defer cancel()
	if err := f.talk.End(ctx); err != nil && !errors.Is(err, unix.ETIME) {
		return fmt.Errorf("thaw: %w", named(err))
	}
	f.melted = true
	return nil
}

func (m *Manager) markFrozen(v *volume, is bool) error {
	e := v.entry.clone()
	e.Frozen = is
	return m.record(v, e)
}

// thawLeft thaws what an earlier process froze and did not thaw. The process
// that it left for that has ended by now, or never will.
func (m *Manager) thawLeft(ctx context.Context) {
	for id, v := range m.volumes {
		if !v.entry.Frozen {
			continue
		}
		path, err := m.mountedStaging(v)
		if err == nil {
			_, err = m.tools.self(ctx, m.cfg.Deadlines.Sync, cmdThaw, path)
		}
		if errors.Is(err, ErrNotStaged) {
			err = nil
		}
		if err == nil {
			err = m.markFrozen(v, false)
		}
		if err != nil {
			klog.FromContext(ctx).Error(err, "Thaw what an earlier process has frozen", "volume", id)
		}
	}
}

// rotatable is the volume's image, if it is one that can be put aside.
func rotatable(v *volume) (*vhdx.Image, error) {
	im, ok := v.image.(*vhdx.Image)
	if !ok {
		return nil, fmt.Errorf("%w: its image is no VHDX", ErrInvalid)
	}
	return im, nil
}
