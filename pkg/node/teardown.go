package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/helper"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
)

// tearDown removes all that is left of a volume, in reverse order of its
// making, and the entry last (I-NODE-1). An error with the volume still
// listed: the rest stays, and a later call goes on from there. An error with
// the volume gone: the image could not be closed well.
func (m *Manager) tearDown(ctx context.Context, v *volume) error {
	if v.dev == nil && v.image == nil {
		return m.tearDownLeftover(ctx, v)
	}
	if err := errors.Join(m.unfreeze(ctx, v), m.thawMarked(ctx, v)); err != nil {
		return err
	}
	if err := m.drainFilesystem(ctx, v); err != nil {
		return err
	}
	m.change(func() { v.staged = false })
	for _, path := range slices.Backward(v.entry.Staging) {
		if err := m.whileGoingOn(ctx, v, func(ctx context.Context) error { return m.unmountOwn(ctx, v.entry, path, 0) }); err != nil {
			return err
		}
	}
	m.step("unmounted")
	if v.dev != nil {
		if err := m.bounded(ctx, v.dev.Detach); err != nil {
			return fmt.Errorf("detach %s: %w", v.dev.Path(), err)
		}
		m.change(func() { v.dev = nil })
		m.step("detached")
	}
	var closed error
	if v.image != nil {
		closed = v.image.Close()
		m.change(func() { v.image = nil })
		m.step("closed")
	}
	// Not before: until now the journal at the keeper was needed.
	if err := errors.Join(m.letGo(ctx, v.entry.Volume), v.life.end()); err != nil {
		return errors.Join(err, closed)
	}
	if err := m.forget(v); err != nil {
		return errors.Join(err, closed)
	}
	if closed != nil {
		return fmt.Errorf("close image of volume %s: %w", v.entry.Volume, closed)
	}
	return nil
}

// tearDownLeftover removes what a process that is no more has left.
func (m *Manager) tearDownLeftover(ctx context.Context, v *volume) error {
	e := v.entry
	// A device that still waits for a server would hold up its own removal.
	if err := errors.Join(m.letGo(ctx, e.Volume), v.life.end()); err != nil {
		return err
	}
	paths := slices.Clone(e.Staging)
	for _, t := range e.Targets {
		paths = append(paths, t.Path)
	}
	for _, path := range slices.Backward(paths) {
		if err := m.unmountLeftover(ctx, e, path); err != nil {
			return err
		}
	}
	if err := m.removeDead(ctx, e.Volume); err != nil {
		return fmt.Errorf("remove the dead device: %w", err)
	}
	return m.forget(v)
}

func (m *Manager) removeDead(ctx context.Context, id string) error {
	return m.bounded(ctx, func(ctx context.Context) error { return m.cfg.Attacher.Teardown(ctx, id) })
}

// bounded gives a call that removes a device as long as an unmount: both write
// back what is dirty.
func (m *Manager) bounded(ctx context.Context, remove func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Deadlines.Unmount)
	defer cancel()
	err := remove(m.tools.hold(ctx))
	switch {
	case errors.Is(err, blockdev.ErrPaused):
		return fmt.Errorf("%w: %w", ErrPaused, err)
	case errors.Is(err, blockdev.ErrBusy):
		return fmt.Errorf("%w: %w", ErrBusy, err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, helper.ErrDeadline):
		return fmt.Errorf("%w: %w", ErrStuck, err)
	}
	return err
}

// unmountLeftover unmounts what is the entry's own at path. A busy mount is
// detached lazily only if its device answers nobody: what uses it can write
// nothing any more, and kubelet gets its directory back (I-NODE-7).
func (m *Manager) unmountLeftover(ctx context.Context, e entry, path string) error {
	err := m.unmountOwn(ctx, e, path, 0)
	if !errors.Is(err, ErrBusy) || !m.provenDead(ctx, e.Device) {
		return err
	}
	klog.FromContext(ctx).Info("Detaching a busy mount of a dead device", "volume", e.Volume, "device", e.Device.Path, "path", path)
	return m.unmountOwn(ctx, e, path, unix.MNT_DETACH)
}

// provenDead reports whether a read past the page cache fails. No answer is no
// proof.
func (m *Manager) provenDead(ctx context.Context, d *deviceID) bool {
	return errors.Is(m.read(ctx, d), unix.EIO)
}

// read reads a page of the device past the page cache.
func (m *Manager) read(ctx context.Context, d *deviceID) error {
	_, err := m.tools.self(ctx, m.cfg.Deadlines.Probe, cmdRead, d.Path,
		strconv.FormatUint(uint64(d.Major), 10), strconv.FormatUint(uint64(d.Minor), 10))
	return err
}

// unused answers ErrBusy with what still has the volume mounted, other than at
// the paths given.
func (m *Manager) unused(v *volume, except []string) error {
	t, err := readMounts()
	if err != nil {
		return err
	}
	var users []string
	for _, x := range v.entry.Targets {
		if mi := t.at(x.Path); mi != nil && v.entry.owns(mi) {
			users = append(users, x.Path)
		}
	}
	// Bind mounts that others made of it: a subPath, a restored pod.
	for _, path := range t.of(v.entry.Device) {
		if !slices.Contains(except, path) && !slices.Contains(users, path) {
			users = append(users, path)
		}
	}
	if len(users) > 0 {
		return fmt.Errorf("%w: still mounted at %s", ErrBusy, strings.Join(users, ", "))
	}
	return nil
}

// Unstage undoes Stage for one staging path; with the last of them the device
// goes, and the image is closed clean. Nothing there is success.
func (m *Manager) Unstage(ctx context.Context, volumeID, stagingPath string) error {
	stagingPath, err := cleanPath(stagingPath)
	if err != nil {
		return err
	}
	end, err := m.begin(volumeID)
	if err != nil {
		return err
	}
	defer end()
	v := m.lookup(volumeID)
	if v == nil || !slices.Contains(v.entry.Staging, stagingPath) {
		err = notMounted(stagingPath)
	} else if err = m.serving(ctx, v); err == nil {
		err = m.unstage(ctx, v, stagingPath)
	}
	if err != nil {
		return fmt.Errorf("unstage volume %s: %w", volumeID, err)
	}
	m.stageEnded(volumeID, nil) // nobody wants it staged any more
	return nil
}

// notMounted is success where kubelet may take the path as unstaged.
func notMounted(path string) error {
	t, err := readMounts()
	if err != nil {
		return err
	}
	if mi := t.at(path); mi != nil {
		return fmt.Errorf("%w: %s, and no journal entry knows of it; unmount it by hand", ErrForeignMount, describe(mi))
	}
	return nil
}

// tearDownInUse is tearDown of a volume that may stay as it is.
func (m *Manager) tearDownInUse(ctx context.Context, v *volume) error {
	v.unlimited()
	err := m.tearDown(ctx, v)
	if v.up() {
		err = errors.Join(err, m.ApplyLimits(ctx, v.entry.Volume))
	}
	return err
}

func (m *Manager) unstage(ctx context.Context, v *volume, path string) error {
	if len(v.entry.Staging) == 1 {
		if v.dev != nil {
			if err := m.unused(v, v.entry.Staging); err != nil {
				return err
			}
		}
		return m.tearDownInUse(ctx, v)
	}
	t, err := readMounts()
	if err != nil {
		return err
	}
	for _, x := range v.entry.Targets {
		if mi := t.at(x.Path); x.Staging == path && mi != nil && v.entry.owns(mi) {
			return fmt.Errorf("%w: still mounted at %s", ErrBusy, x.Path)
		}
	}
	if err := m.unmountOwn(ctx, v.entry, path, 0); err != nil {
		return err
	}
	return m.record(v, v.entry.withoutStaging(path))
}
