package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

var _ control.Holder = (*Manager)(nil)

// Cut takes a reserved snapshot of a volume that is staged here, under I/O; see
// [control.Holder]. control.ErrNotHeld, control.ErrFrozenNoMore, ErrPending.
func (m *Manager) Cut(ctx context.Context, volumeID, snapshot string, o control.CutOptions) (c control.CutResult, err error) {
	err = m.withImage(ctx, volumeID, func(v *volume) error {
		c, err = m.cut(ctx, v, snapshot, o)
		return err
	})
	if err != nil {
		return c, fmt.Errorf("snapshot of volume %s: %w", volumeID, err)
	}
	return c, nil
}

// turnPatience is how long a controller's call waits for another one on the
// volume: they are short, but for a stage, and one of several that are to be of
// one moment should not fail for that.
const turnPatience = 5 * time.Second

// await is begin that waits for its turn.
func (m *Manager) await(ctx context.Context, volumeID string) (end func(), err error) {
	for until := time.Now().Add(turnPatience); ; {
		end, err := m.begin(volumeID)
		if !errors.Is(err, ErrPending) || time.Now().After(until) || ctx.Err() != nil {
			return end, err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// withImage runs do while nobody else works on the volume, which is served here.
func (m *Manager) withImage(ctx context.Context, volumeID string, do func(v *volume) error) error {
	end, err := m.await(ctx, volumeID)
	if err != nil {
		return err
	}
	defer end()
	v := m.lookup(volumeID)
	if v == nil {
		return control.ErrNotHeld
	}
	if err := m.serving(ctx, v); err != nil {
		return err
	}
	if err := v.usable(); err != nil {
		return err
	}
	return do(v)
}

func (m *Manager) cut(ctx context.Context, v *volume, snapshot string, o control.CutOptions) (control.CutResult, error) {
	im, err := rotatable(v)
	if err != nil {
		return control.CutResult{}, err
	}
	var c control.CutResult
	live := pool.Live{Image: im}
	f := m.frozenOf(v.entry.Volume)
	if o.Token != "" && (f == nil || f.token != o.Token || f.over()) && !v.entry.ReadOnly {
		return c, control.ErrFrozenNoMore
	}
	if f != nil && f.over() { // whoever wanted it has not come back
		if err := m.unfreeze(ctx, v); err != nil {
			return c, err
		}
		f = nil
	}
	switch {
	case v.entry.ReadOnly:
		live.Around = while(unwritten(im))
	case o.Token != "":
		live.Around = while(f.still)
	case f != nil:
		live.Around = while(f.consistency)
	case o.Freeze && !v.entry.Block:
		// Most of it before the volume's lock is taken, which does not last long.
		if err := m.syncMounted(ctx, v); err != nil {
			return c, err
		}
		live.Around = func(cut func(pool.Likeness) error) error {
			f, err := m.freeze(ctx, v, "", min(o.Limit, FreezeLimit))
			if err != nil {
				return err
			}
			err = cut(f.consistency)
			err = errors.Join(err, m.thaw(ctx, v, f))
			c.Frozen = time.Since(f.since)
			return err
		}
	}
	snap, err := m.cfg.Volumes.Cut(ctx, snapshot, live)
	c.Pause, c.Consistency = im.LastPause(), string(snap.Consistency)
	m.step("cut")
	return c, err
}

// while is a cut of a disk that is held still already.
func while(like pool.Likeness) func(func(pool.Likeness) error) error {
	return func(cut func(pool.Likeness) error) error { return cut(like) }
}

// unwritten is what a disk is like that is only read.
func unwritten(im *vhdx.Image) pool.Likeness {
	if im.Info().Replay.Entries > 0 {
		return pool.Always(pool.ConsistentCrash)
	}
	return pool.Always(pool.ConsistentFilesystem)
}

func (m *Manager) syncMounted(ctx context.Context, v *volume) error {
	path, err := m.mountedStaging(v)
	if err == nil {
		_, err = m.tools.self(ctx, m.cfg.Deadlines.Sync, cmdSyncfs, path)
	}
	return err
}

// Freeze keeps writes away from a volume until Thaw with the same token, or
// until the limit, [FreezeLimit] at most, has passed: what is mounted is synced
// and frozen, the writes of a raw volume are held back. See [control.Holder].
// control.ErrNotHeld, ErrPending.
func (m *Manager) Freeze(ctx context.Context, volumeID, token string, limit time.Duration) (like string, err error) {
	err = m.withImage(ctx, volumeID, func(v *volume) error {
		if v.entry.ReadOnly { // it does not change
			like = control.ConsistencyFilesystem
			return nil
		}
		f := m.frozenOf(volumeID)
		if f != nil && !f.over() && f.token != token {
			return fmt.Errorf("%w: it is frozen for somebody else", ErrPending)
		}
		if f == nil || f.over() {
			if err := m.unfreeze(ctx, v); err != nil {
				return err
			}
			if f, err = m.freeze(ctx, v, token, min(limit, FreezeLimit)); err != nil {
				return err
			}
			m.change(func() { m.frozen[volumeID] = f })
		}
		like = string(f.like)
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("freeze volume %s: %w", volumeID, err)
	}
	return like, nil
}

// Thaw ends a freeze. None, or one of another token, is success. Whoever else
// works on the volume does not keep it frozen.
func (m *Manager) Thaw(ctx context.Context, volumeID, token string) error {
	f := m.frozenOf(volumeID)
	if f == nil || f.token != token {
		return nil
	}
	if err := m.melt(ctx, f); err != nil {
		return fmt.Errorf("thaw volume %s: %w", volumeID, err)
	}
	end, err := m.await(ctx, volumeID)
	if err != nil {
		return fmt.Errorf("thaw volume %s: %w", volumeID, err)
	}
	defer end()
	v := m.lookup(volumeID)
	if v == nil || m.frozenOf(volumeID) != f {
		return nil
	}
	if err := m.unfreeze(ctx, v); err != nil {
		return fmt.Errorf("thaw volume %s: %w", volumeID, err)
	}
	return nil
}

func (m *Manager) frozenOf(id string) *frozen {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.frozen[id]
}

// unfreeze ends whatever freeze there is. The caller has begun on the volume.
func (m *Manager) unfreeze(ctx context.Context, v *volume) error {
	id := v.entry.Volume
	f := m.frozenOf(id)
	if f == nil {
		return nil
	}
	if err := m.thaw(ctx, v, f); err != nil {
		return err
	}
	m.change(func() { delete(m.frozen, id) })
	return nil
}

// Follow makes a volume follow its record: the limits of its device, what
// becomes of writes on a full share, and what the layers below its image were
// merged into.
func (m *Manager) Follow(ctx context.Context, volumeID string) error {
	if err := m.ApplyLimits(ctx, volumeID); err != nil {
		return err
	}
	err := m.withImage(ctx, volumeID, func(v *volume) error {
		im, err := rotatable(v)
		if err != nil || v.entry.ReadOnly {
			return err
		}
		return m.cfg.Volumes.Switch(ctx, volumeID, im)
	})
	if err != nil {
		return fmt.Errorf("follow the record of volume %s: %w", volumeID, err)
	}
	return nil
}
