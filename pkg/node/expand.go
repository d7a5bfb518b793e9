package node

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"k8s.io/klog/v2"
)

// Expand makes image, device and filesystem follow the record's size, and
// returns the device's size. path is a staging path or a target of the volume.
func (m *Manager) Expand(ctx context.Context, volumeID, path string) (int64, error) {
	end, err := m.begin(volumeID)
	if err != nil {
		return 0, err
	}
	defer end()
	v := m.lookup(volumeID)
	if v == nil {
		return 0, fmt.Errorf("expand volume %s: %w", volumeID, ErrNotFound)
	}
	path = realPath(path)
	if _, published := v.entry.target(path); !published && !slices.Contains(v.entry.Staging, path) {
		return 0, fmt.Errorf("expand volume %s at %s: %w", volumeID, path, ErrNotFound)
	}
	size, err := m.expand(ctx, v)
	if err != nil {
		return size, fmt.Errorf("expand volume %s: %w", volumeID, err)
	}
	return size, nil
}

func (m *Manager) expand(ctx context.Context, v *volume) (int64, error) {
	if err := v.usable(); err != nil {
		return 0, err
	}
	if v.entry.ReadOnly {
		return 0, fmt.Errorf("%w: staged read-only", ErrIncompatible)
	}
	rec, err := m.cfg.Volumes.Volume(ctx, v.entry.Volume)
	if err != nil {
		return 0, err
	}
	if rec.Size > v.image.Size() {
		if err := v.image.Grow(rec.Size); err != nil {
			return 0, fmt.Errorf("grow image: %w", err)
		}
	}
	// Also when the image had grown: an earlier call may have come no further.
	if err := v.dev.Resize(ctx); err != nil {
		return 0, fmt.Errorf("resize %s: %w", v.dev.Path(), err)
	}
	size := v.image.Size()
	m.change(func() { v.size = size })
	v.stats.expire()
	if v.entry.Block {
		return size, nil
	}
	sb, err := readSuperblock(v.image, size, v.entry.FSType)
	if err != nil || !sb.growable(size) {
		return size, err
	}
	mounted, err := m.mountedStaging(v)
	if err != nil {
		return size, err
	}
	return size, m.growMounted(ctx, v.entry.FSType, v.dev.Path(), mounted, size)
}

// mountedStaging is a staging path at which the filesystem can be seen.
func (m *Manager) mountedStaging(v *volume) (string, error) {
	t, err := readMounts()
	if err != nil {
		return "", err
	}
	for _, path := range v.entry.Staging {
		if mi := t.at(path); mi != nil && v.entry.owns(mi) {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w: its filesystem is not mounted at %q", ErrNotStaged, v.entry.Staging)
}

// Shutdown makes what has been written durable: filesystems are synced, images
// flushed. Volumes that nothing uses are unstaged and their images closed
// clean; the others are served until the process ends. No call is accepted
// afterwards.
func (m *Manager) Shutdown(ctx context.Context) error {
	m.mu.Lock()
	m.ready = false
	var up []*volume
	for _, v := range m.volumes {
		// A volume that a call works on is in that call's hands.
		if v.up() && !m.busy[v.entry.Volume] {
			up = append(up, v)
			m.busy[v.entry.Volume] = true
		}
	}
	m.mu.Unlock()
	errs := make([]error, 0, len(up))
	for _, v := range up {
		if err := m.shut(ctx, v); err != nil {
			errs = append(errs, fmt.Errorf("volume %s: %w", v.entry.Volume, err))
		}
	}
	return errors.Join(append(errs, m.journal.close())...)
}

func (m *Manager) shut(ctx context.Context, v *volume) error {
	var err error
	if !v.entry.Block {
		if mounted, merr := m.mountedStaging(v); merr == nil {
			_, err = m.tools.self(ctx, m.cfg.Deadlines.Sync, cmdSyncfs, mounted)
		}
	}
	if err = errors.Join(err, v.image.Flush()); err != nil {
		return err
	}
	if m.unused(v, v.entry.Staging) != nil {
		return nil
	}
	if err := m.tearDown(ctx, v); err != nil {
		klog.FromContext(ctx).Info("Left staged", "volume", v.entry.Volume, "reason", err.Error())
		if m.lookup(v.entry.Volume) == nil {
			return err // the image could not be closed well
		}
	}
	return nil
}
