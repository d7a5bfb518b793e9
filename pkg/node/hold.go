package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// What a volume's device holds back: writes without space, and requests beyond
// the volume's limits.

// settings are what the record wants of the device. A volume that cannot pause
// and was not told to does not.
func (m *Manager) settings(ctx context.Context, c *blockdev.Config, rec pool.Volume) error {
	c.Limits = blockdev.Limits(rec.Limits)
	c.PauseLimit = time.Duration(rec.Params.PauseLimit) * time.Second
	c.Pause = rec.OnFull != pool.OnFullError && !c.Image.ReadOnly()
	im, ok := c.Image.(interface{ CannotPause() string })
	if !c.Pause || !ok {
		return nil
	}
	why := im.CannotPause()
	if why == "" {
		return nil
	}
	c.Pause = false
	if rec.OnFull == pool.OnFullPause {
		return fmt.Errorf("%w: %s; mount the share so that it does, or use onFull: error", ErrCannotPause, why)
	}
	klog.FromContext(ctx).Info("Writes will fail when the share is full", "volume", c.ID, "reason", why)
	return nil
}

// Paused says whether writes of a volume wait for space. Such a volume can be
// neither synced nor frozen nor taken down.
func (m *Manager) Paused(volumeID string) blockdev.Pause {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v := m.volumes[volumeID]; v != nil {
		return v.paused()
	}
	return blockdev.Pause{}
}

// paused is called under Manager.mu, or by the call that works on v.
func (v *volume) paused() blockdev.Pause {
	if p, ok := v.dev.(blockdev.Pauser); ok {
		return p.Paused()
	}
	return blockdev.Pause{}
}

// goingOn answers ErrPaused while writes of v wait.
func (v *volume) goingOn() error {
	p := v.paused()
	if !p.On() {
		return nil
	}
	return fmt.Errorf("%w: %d requests wait, since %s: %w; make room on the share, or give the volume onFull: error, which fails them",
		ErrPaused, p.Waiting, p.Since.UTC().Format(time.RFC3339), p.Reason)
}

// pauseLook is how often a call that waits for a device looks whether it pauses.
const pauseLook = 250 * time.Millisecond

// whileGoingOn does what waits for all that is written to v. When writes begin
// to wait for space it is told to give up, for it would wait as long, and the
// answer is ErrPaused.
func (m *Manager) whileGoingOn(ctx context.Context, v *volume, do func(context.Context) error) error {
	if err := v.goingOn(); err != nil {
		return err
	}
	if _, ok := v.dev.(blockdev.Pauser); !ok {
		return do(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	dev := &volume{dev: v.dev} // v's own may be gone before the look that is under way
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(pauseLook)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if err := dev.goingOn(); err != nil {
				cancel(err)
			}
		}
	}()
	err := do(ctx)
	cause := context.Cause(ctx)
	cancel(nil)
	<-ended
	if err != nil && errors.Is(cause, ErrPaused) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}

// drainFilesystem writes back what is dirty while everything is still mounted:
// if the share runs full over it, the volume stays as it is.
func (m *Manager) drainFilesystem(ctx context.Context, v *volume) error {
	if _, ok := v.dev.(blockdev.Pauser); !ok || v.entry.Block || v.entry.ReadOnly || ended(v.dev) {
		return v.goingOn()
	}
	mounted, err := m.mountedStaging(v)
	if err != nil {
		return v.goingOn()
	}
	err = m.whileGoingOn(ctx, v, func(ctx context.Context) error {
		_, err := m.tools.self(ctx, m.cfg.Deadlines.Unmount, cmdSyncfs, mounted)
		return err
	})
	if errors.Is(err, ErrPaused) || errors.Is(err, ErrStuck) {
		return err
	}
	return nil // what the filesystem has to say otherwise, its unmount will show
}

// unlimited takes the limits from a volume that goes, or whose server does:
// what is to be written back is not to outlast the patience of who waits for it.
func (v *volume) unlimited() {
	if d, ok := v.dev.(blockdev.Limiter); ok {
		d.SetLimits(blockdev.Limits{})
	}
}

// ApplyLimits has a volume's device follow its record: limits, and what becomes
// of writes when the share is full. Of a volume that is not served here nothing
// has to follow: what serves it next reads the record.
func (m *Manager) ApplyLimits(ctx context.Context, volumeID string) error {
	rec, err := m.cfg.Volumes.Volume(ctx, volumeID)
	if err != nil {
		return fmt.Errorf("apply the limits of volume %s: %w", volumeID, err)
	}
	m.mu.Lock()
	v := m.volumes[volumeID]
	var dev blockdev.Device
	var im image
	if v != nil {
		dev, im = v.dev, v.image
	}
	m.mu.Unlock()
	if dev == nil || im == nil {
		return nil
	}
	c := blockdev.Config{ID: volumeID, Image: im}
	if err := m.settings(ctx, &c, rec); err != nil {
		return fmt.Errorf("apply the limits of volume %s: %w", volumeID, err)
	}
	if d, ok := dev.(blockdev.Pauser); ok {
		d.SetPause(c.Pause, c.PauseLimit)
	}
	if d, ok := dev.(blockdev.Limiter); ok {
		d.SetLimits(c.Limits)
	}
	return nil
}
