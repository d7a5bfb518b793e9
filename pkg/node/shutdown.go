package node

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/klog/v2"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
)

// Shutdown makes what has been written durable: filesystems are synced, images
// flushed. With a keeper all images are closed clean then, and the devices wait
// for the next process; nothing is unmounted. Without one, volumes that nothing
// uses are unstaged, and the others served until the process ends. It waits no
// longer than ctx lasts, and no call is accepted afterwards.
func (m *Manager) Shutdown(ctx context.Context) error {
	m.mu.Lock()
	if m.ready {
		close(m.stopped)
	}
	m.ready = false
	calls := len(m.busy)
	var up []*volume
	for id, v := range m.volumes {
		// A volume that a call works on is in that call's hands.
		if v.up() && !m.busy[id] {
			up = append(up, v)
			m.busy[id] = true
		}
	}
	m.mu.Unlock()
	results := make(chan error, len(up))
	for _, v := range up {
		go func() { results <- m.shut(ctx, v) }()
	}
	var errs []error
	for i := range up {
		select {
		case err := <-results:
			errs = append(errs, err)
		case <-ctx.Done():
			// The journal stays open for those that are still at it.
			return errors.Join(append(errs, fmt.Errorf("%d of %d volumes are not flushed: %w", len(up)-i, len(up), ctx.Err()))...)
		}
	}
	if calls == 0 { // else the state directory stays ours until the process ends
		errs = append(errs, m.journal.close())
	}
	return errors.Join(errs...)
}

func (m *Manager) shut(ctx context.Context, v *volume) error {
	id := v.entry.Volume
	var err error
	v.unlimited()
	if !v.entry.Block {
		if mounted, merr := m.mountedStaging(v); merr == nil {
			err = m.whileGoingOn(ctx, v, func(ctx context.Context) error {
				_, err := m.tools.self(ctx, m.cfg.Deadlines.Sync, cmdSyncfs, mounted)
				return err
			})
		}
		if errors.Is(err, ErrPaused) {
			klog.FromContext(ctx).Info("Left as it is", "volume", id, "reason", err.Error())
			err = nil // what waits is the next process's
		}
	}
	if v.life != nil && v.life.generation > 0 {
		// Their errors are the same ones, and later requests have a server again.
		return errors.Join(err, m.handOver(ctx, v))
	}
	if err = errors.Join(err, v.image.Flush()); err != nil {
		return fmt.Errorf("flush volume %s: %w", id, err)
	}
	if m.unused(v, v.entry.Staging) != nil {
		return nil
	}
	if err := m.tearDown(ctx, v); err != nil {
		if m.lookup(id) == nil {
			return err // the image could not be closed well
		}
		klog.FromContext(ctx).Info("Left staged", "volume", id, "reason", err.Error())
	}
	return nil
}

// handOver leaves a served volume to the next process. What it has answered is
// in the image, which is closed clean.
func (m *Manager) handOver(ctx context.Context, v *volume) error {
	if err := v.dev.(blockdev.Releaser).Release(ctx); err != nil {
		return err // it is served until the process ends, and resumed as after a death
	}
	m.step("released")
	err := v.image.Close()
	m.change(func() { v.dev, v.image, v.staged = nil, nil, false })
	if err = errors.Join(err, v.life.end()); err != nil {
		return fmt.Errorf("hand over volume %s: %w", v.entry.Volume, err)
	}
	return nil
}
