package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// Publish makes a staged volume appear at a target path. Called again it
// verifies that this is still so.
func (m *Manager) Publish(ctx context.Context, r PublishRequest) error {
	if err := r.check(); err != nil {
		return err
	}
	end, err := m.begin(r.VolumeID)
	if err != nil {
		return err
	}
	defer end()
	v := m.lookup(r.VolumeID)
	if v == nil || !slices.Contains(v.entry.Staging, r.StagingPath) {
		return fmt.Errorf("publish volume %s: %w at %q", r.VolumeID, ErrNotStaged, r.StagingPath)
	}
	err = m.serving(ctx, v)
	if err == nil {
		err = m.publish(ctx, v, r)
	}
	if err != nil {
		return fmt.Errorf("publish volume %s at %s: %w", r.VolumeID, r.TargetPath, err)
	}
	return nil
}

// check brings r into the form in which it is recorded.
func (r *PublishRequest) check() error {
	if r.Block {
		r.FSType, r.MountFlags = "", nil
	}
	if r.StagingPath == "" {
		return fmt.Errorf("publish volume %s: %w: no staging path", r.VolumeID, ErrNotStaged)
	}
	var err error
	if r.StagingPath, err = cleanPath(r.StagingPath); err != nil {
		return err
	}
	if r.TargetPath, err = cleanPath(r.TargetPath); err != nil {
		return err
	}
	r.MountFlags, err = splitFlags(r.MountFlags)
	return err
}

func (r *PublishRequest) target() target {
	return target{
		Path: r.TargetPath, Staging: r.StagingPath, ReadOnly: r.ReadOnly,
		MountFlags: r.MountFlags, SingleWriter: r.SingleWriter,
	}
}

func (m *Manager) publish(ctx context.Context, v *volume, r PublishRequest) error {
	if err := v.usable(); err != nil {
		return err
	}
	switch {
	case r.Block != v.entry.Block:
		return fmt.Errorf("%w: staged with block=%v", ErrIncompatible, v.entry.Block)
	case r.FSType != "" && r.FSType != v.entry.FSType:
		return fmt.Errorf("%w: staged as %s", ErrIncompatible, v.entry.FSType)
	case v.entry.ReadOnly && !r.ReadOnly:
		return fmt.Errorf("%w: staged read-only", ErrIncompatible)
	}
	attrs, err := bindAttrs(r.MountFlags, v.entry.MountFlags, r.ReadOnly)
	if err != nil {
		return err
	}
	t, err := readMounts()
	if err != nil {
		return err
	}
	if err := m.mayPublish(ctx, v, r, t); err != nil {
		return err
	}
	if mi := t.at(r.TargetPath); mi != nil {
		return republish(v.entry, r, mi)
	}
	return m.publishNew(ctx, v, r, attrs)
}

// mayPublish looks at what is staged, and at who else has it.
func (m *Manager) mayPublish(ctx context.Context, v *volume, r PublishRequest, t mountTable) error {
	for _, x := range v.entry.Targets {
		mi := t.at(x.Path)
		live := mi != nil && v.entry.owns(mi)
		if x.Path == r.TargetPath {
			if live && !x.equal(r.target()) {
				return fmt.Errorf("%w: readOnly=%v, single writer %v, %d mount flags", ErrIncompatible, x.ReadOnly, x.SingleWriter, len(x.MountFlags))
			}
			continue
		}
		if live && (r.SingleWriter || x.SingleWriter) {
			return fmt.Errorf("%w: %s", ErrSingleWriter, x.Path)
		}
	}
	if v.entry.Block {
		return nil
	}
	if mi := t.at(r.StagingPath); mi == nil || !v.entry.owns(mi) {
		return fmt.Errorf("%w: its filesystem is not mounted at %s", ErrNotStaged, r.StagingPath)
	}
	if r.ReadOnly {
		return nil // what can still be read may be read
	}
	fault, err := m.fault(ctx, v, r.StagingPath)
	if err == nil && fault != "" {
		err = fmt.Errorf("%w: %s; end all its pods on this node, then it is checked and mounted again", ErrReadOnlyRemount, fault)
	}
	return err
}

// republish answers a repeated Publish: something is mounted at the target.
func republish(e entry, r PublishRequest, mi *mountinfo.Info) error {
	x, known := e.target(r.TargetPath)
	if !known || !e.owns(mi) {
		return fmt.Errorf("%w: %s", ErrForeignMount, describe(mi))
	}
	if x.ReadOnly != has(mi.Options, "ro") && !slices.Contains(x.MountFlags, "ro") {
		return fmt.Errorf("%w: its mount has changed: %s", ErrIncompatible, mi.Options)
	}
	return nil
}

// publishNew binds the staged filesystem, or the device node itself.
func (m *Manager) publishNew(ctx context.Context, v *volume, r PublishRequest, attrs mountAttrs) error {
	if err := m.record(v, v.entry.withTarget(r.target())); err != nil {
		return err
	}
	m.step("target recorded")
	source, makeTarget := r.StagingPath, makeTargetDir
	if r.Block {
		source, makeTarget = v.dev.Path(), makeTargetFile
	}
	err := makeTarget(r.TargetPath)
	if err == nil {
		m.step("target made")
		err = m.bind(ctx, source, r.TargetPath, attrs)
	}
	if err == nil {
		err = m.sameThere(v, r.TargetPath)
	}
	if err == nil {
		m.step("bound")
		return nil
	}
	if undo := m.unpublish(context.WithoutCancel(ctx), v, r.TargetPath); undo != nil {
		return fmt.Errorf("%w: %w; it failed because: %s", ErrUnfinished, undo, err.Error())
	}
	return err
}

func (m *Manager) sameThere(v *volume, path string) error {
	t, err := readMounts()
	if err != nil {
		return err
	}
	if mi := t.at(path); mi == nil || !v.entry.owns(mi) {
		return errors.New("the bind mount does not show in the mount table")
	}
	return nil
}

func makeTargetDir(path string) error { return os.MkdirAll(path, 0o750) }

func makeTargetFile(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err == nil {
		return f.Close()
	}
	if fi, lerr := os.Lstat(path); lerr == nil && fi.Mode().IsRegular() && fi.Size() == 0 {
		return nil
	}
	return err
}

// Unpublish undoes Publish: the mount goes, and the target with it. Nothing
// there is success.
func (m *Manager) Unpublish(ctx context.Context, volumeID, targetPath string) error {
	targetPath, err := cleanPath(targetPath)
	if err != nil {
		return err
	}
	end, err := m.begin(volumeID)
	if err != nil {
		return err
	}
	defer end()
	v := m.lookup(volumeID)
	if v == nil {
		v = &volume{} // owns nothing
	}
	err = m.serving(ctx, v)
	if err == nil {
		err = m.unpublish(ctx, v, targetPath)
	}
	if err != nil {
		return fmt.Errorf("unpublish volume %s from %s: %w", volumeID, targetPath, err)
	}
	return nil
}

func (m *Manager) unpublish(ctx context.Context, v *volume, path string) error {
	var err error
	if v.entry.Volume != "" && v.dev == nil {
		err = m.unmountLeftover(ctx, v.entry, path)
	} else {
		err = m.unmountOwn(ctx, v.entry, path, 0)
	}
	if err != nil {
		return err
	}
	if err := notMounted(path); err != nil {
		return err
	}
	if err := removeTarget(path); err != nil {
		return err
	}
	if _, known := v.entry.target(path); known {
		return m.record(v, v.entry.withoutTarget(path))
	}
	return nil
}

// removeTarget removes what Publish has made, of this boot or an earlier one:
// an empty directory or file. Anything else is somebody's data.
func removeTarget(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !fi.IsDir() && (!fi.Mode().IsRegular() || fi.Size() > 0) {
		return fmt.Errorf("%s is %s of %d bytes, nothing that this driver makes; remove it by hand", path, fi.Mode().Type(), fi.Size())
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		if strings.Contains(err.Error(), "not empty") {
			return fmt.Errorf("%w: something has been written below the mount; move it away by hand", err)
		}
		return err
	}
	return nil
}
