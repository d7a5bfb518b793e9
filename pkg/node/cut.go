package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// Cut says how a snapshot of a volume in use was taken.
type Cut struct {
	Snapshot pool.Snapshot
	Pause    time.Duration // for which writes to the device waited
	Frozen   time.Duration // for which the filesystem was
}

// Cut takes a reserved snapshot of a volume that is staged here, under I/O. A
// mounted filesystem is synced, and frozen around the moment, unless crash
// consistency is asked for. ErrNotStaged, ErrPending.
func (m *Manager) Cut(ctx context.Context, volumeID, snapshot string, crash bool) (c Cut, err error) {
	err = m.withImage(ctx, volumeID, func(v *volume) error {
		c, err = m.cut(ctx, v, snapshot, crash)
		return err
	})
	if err != nil {
		return c, fmt.Errorf("snapshot of volume %s: %w", volumeID, err)
	}
	return c, nil
}

// withImage runs do while nobody else works on the volume, which is served here.
func (m *Manager) withImage(ctx context.Context, volumeID string, do func(v *volume) error) error {
	end, err := m.begin(volumeID)
	if err != nil {
		return err
	}
	defer end()
	v := m.lookup(volumeID)
	if v == nil {
		return ErrNotStaged
	}
	if err := m.serving(ctx, v); err != nil {
		return err
	}
	if err := v.usable(); err != nil {
		return err
	}
	return do(v)
}

func (m *Manager) cut(ctx context.Context, v *volume, snapshot string, crash bool) (Cut, error) {
	im, err := rotatable(v)
	if err != nil {
		return Cut{}, err
	}
	var c Cut
	live := pool.Live{Image: im}
	switch f := m.frozenOf(v.entry.Volume); {
	case f != nil:
		live.Around = func(cut func(func() pool.Consistency) error) error { return cut(f.consistency) }
	case !crash && !v.entry.Block && !v.entry.ReadOnly:
		live.Around = func(cut func(func() pool.Consistency) error) error {
			f, err := m.freeze(ctx, v, "", FreezeLimit)
			if err != nil {
				return err
			}
			err = cut(f.consistency)
			err = errors.Join(err, m.thaw(ctx, v, f))
			c.Frozen = time.Since(f.since)
			return err
		}
	case v.entry.ReadOnly:
		live.Around = func(cut func(func() pool.Consistency) error) error {
			return cut(func() pool.Consistency { return pool.ConsistentFilesystem })
		}
	}
	c.Snapshot, err = m.cfg.Volumes.Cut(ctx, snapshot, live)
	c.Pause = im.LastPause()
	m.step("cut")
	return c, err
}

// Freeze keeps writes away from a volume until Thaw with the same token, or
// until the limit, [FreezeLimit] at most, has passed: what is mounted is synced
// and frozen, the writes of a raw volume are held back. Cut meanwhile takes the
// disk as it is. ErrNotStaged, ErrPending.
func (m *Manager) Freeze(ctx context.Context, volumeID, token string, limit time.Duration) error {
	err := m.withImage(ctx, volumeID, func(v *volume) error {
		if f := m.frozenOf(volumeID); f != nil && time.Now().Before(f.until) {
			if f.token == token {
				return nil
			}
			return fmt.Errorf("%w: it is frozen for somebody else", ErrPending)
		} else if f != nil {
			if err := m.unfreeze(ctx, v); err != nil {
				return err
			}
		}
		if v.entry.ReadOnly {
			return nil // it does not change
		}
		f, err := m.freeze(ctx, v, token, min(limit, FreezeLimit))
		if err != nil {
			return err
		}
		m.change(func() { m.frozen[volumeID] = f })
		return nil
	})
	if err != nil {
		return fmt.Errorf("freeze volume %s: %w", volumeID, err)
	}
	return nil
}

// Thaw ends a freeze. None, or one of another token, is success.
func (m *Manager) Thaw(ctx context.Context, volumeID, token string) error {
	end, err := m.begin(volumeID)
	if err != nil {
		return err
	}
	defer end()
	v := m.lookup(volumeID)
	if f := m.frozenOf(volumeID); v == nil || f == nil || f.token != token {
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
	m.change(func() { delete(m.frozen, id) })
	return m.thaw(ctx, v, f)
}

// Follow makes the image follow the volume's record: it moves to what the
// layers below it were merged into.
func (m *Manager) Follow(ctx context.Context, volumeID string) error {
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
