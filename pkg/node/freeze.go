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
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
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
	path  string       // where what is frozen is mounted
	held  func()       // lets the writes of a raw volume go on
	since time.Time
	until time.Time

	melting sync.Mutex
	melted  bool // guarded by melting
}

// over reports whether the freeze has ended, or may end at any moment.
func (f *frozen) over() bool { return time.Now().After(f.until) }

// consistency is what the disk is like now: a freeze that has ended makes it no
// better than a power cut does.
func (f *frozen) consistency() (pool.Consistency, error) {
	if f.over() {
		return pool.ConsistentCrash, nil
	}
	return f.like, nil
}

// still is consistency for whoever needs the freeze to last.
func (f *frozen) still() (pool.Consistency, error) {
	if f.over() {
		return "", control.ErrFrozenNoMore
	}
	return f.like, nil
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
		f.since, f.until = time.Now(), time.Now().Add(limit-min(freezeMargin, limit/2))
		time.AfterFunc(limit, f.held)
		return f, nil
	}
	var err error
	if f.path, err = m.mountedStaging(v); err != nil {
		return nil, err
	}
	if err := m.markFrozen(v, true); err != nil {
		return nil, err
	}
	var said string
	if f.talk, said, err = m.startFreeze(ctx, f.path, limit); err != nil {
		return nil, errors.Join(err, m.markFrozen(v, false))
	}
	if said == saidFrozen { // else it is somebody else's, who may end it
		f.like = pool.ConsistentFilesystem
	}
	// The child has counted its limit from a little earlier.
	f.since, f.until = time.Now(), time.Now().Add(limit-min(freezeMargin, limit/2))
	m.step("frozen")
	return f, nil
}

func (m *Manager) startFreeze(ctx context.Context, path string, limit time.Duration) (*helper.Talk, string, error) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Deadlines.Sync)
	defer cancel()
	talk, err := helper.Start(m.tools.hold(ctx), cmdFreeze, path, strconv.FormatInt(limit.Milliseconds(), 10))
	if err != nil {
		return nil, "", err
	}
	said, err := talk.Line(ctx)
	if err != nil {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), helper.KillGrace)
		defer cancel()
		return nil, "", fmt.Errorf("freeze %s: %w", path, named(errors.Join(err, talk.End(last))))
	}
	return talk, said, nil
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
		// It may have been killed before it could.
		if _, terr := m.tools.self(ctx, m.cfg.Deadlines.Sync, cmdThaw, f.path); terr != nil {
			return fmt.Errorf("thaw: %w", named(errors.Join(err, terr)))
		}
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
		if err := m.thawMarked(ctx, v); err != nil {
			klog.FromContext(ctx).Error(err, "Thaw what an earlier process has frozen", "volume", id)
		}
	}
}

// thawMarked thaws what the journal says is frozen.
func (m *Manager) thawMarked(ctx context.Context, v *volume) error {
	if !v.entry.Frozen {
		return nil
	}
	path, err := m.mountedStaging(v)
	if err == nil {
		_, err = m.tools.self(ctx, m.cfg.Deadlines.Sync, cmdThaw, path)
	}
	if err != nil && !errors.Is(err, ErrNotStaged) {
		return err
	}
	return m.markFrozen(v, false)
}

// rotatable is the volume's image, if it is one that can be put aside.
func rotatable(v *volume) (*vhdx.Image, error) {
	im, ok := v.image.(*vhdx.Image)
	if !ok {
		return nil, fmt.Errorf("%w: its image is no VHDX", ErrInvalid)
	}
	return im, nil
}
