package node

import (
	"context"
	"fmt"
	"slices"
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
	var size int64
	if err = m.serving(ctx, v); err == nil {
		size, err = m.expand(ctx, v)
	}
	if err != nil {
		return size, fmt.Errorf("expand volume %s: %w", volumeID, err)
	}
	return size, nil
}

func (m *Manager) expand(ctx context.Context, v *volume) (int64, error) {
	if err := v.usable(); err != nil {
		return 0, err
	}
	if err := v.goingOn(); err != nil {
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
	if err := v.dev.Resize(m.tools.hold(ctx)); err != nil {
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
