package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// fsWork is what has to be done to a volume's device before it is mounted.
type fsWork struct {
	format bool
	zeroed bool // the whole device reads zero
	grow   bool // the filesystem is smaller than its device
}

// plan decides, before there is a device, what becomes of the filesystem. It
// reads the image itself, and it wipes it where a format did not come to its end.
func (m *Manager) plan(ctx context.Context, v *volume, rec pool.Volume) (fsWork, error) {
	im, want := v.image, v.entry.FSType
	if rec.Use == pool.UseNever {
		blank, err := im.Blank()
		if err != nil {
			return fsWork{}, fmt.Errorf("look for data: %w", err)
		}
		if blank {
			return fsWork{format: true, zeroed: true}, m.mayFormat(v)
		}
	}
	sb, err := readSuperblock(im, im.Size(), want)
	if err != nil {
		return fsWork{}, err
	}
	if rec.Use == pool.UseFormatting && (!sb.finished || sb.unused) {
		// I-NODE-4. A filesystem that has been mounted is kept, whatever the
		// record says: on a network share a record may be read too old.
		if err := m.mayFormat(v); err != nil {
			return fsWork{}, err
		}
		zeroed, err := m.wipe(ctx, im)
		return fsWork{format: true, zeroed: zeroed}, err
	}
	switch {
	case sb.fsType == "":
		return fsWork{}, fmt.Errorf("%w: the volume holds data, but neither %s; it is not formatted again",
			ErrNoFilesystem, strings.Join(fsTypes, " nor "))
	case sb.fsType != want:
		return fsWork{}, fmt.Errorf("%w: the volume holds %s, %s was asked for", ErrNoFilesystem, sb.fsType, want)
	}
	return fsWork{grow: !v.entry.ReadOnly && sb.growable(im.Size())}, nil
}

func (m *Manager) mayFormat(v *volume) error {
	if v.entry.ReadOnly {
		return fmt.Errorf("%w: the volume is blank and cannot be formatted read-only", ErrNoFilesystem)
	}
	return nil
}

// wipe removes what a format that was cut short has left, and reports whether
// the whole device reads zero now.
func (m *Manager) wipe(ctx context.Context, im image) (zeroed bool, err error) {
	m.step("wipe")
	if im.Info().Fixed {
		// Zeroing all of it could take an hour: only what identifies a
		// filesystem goes, with the mirrors of btrfs.
		for _, r := range [][2]int64{{0, 2 << 20}, {64 << 20, 1 << 20}, {256 << 30, 1 << 20}} {
			if n := min(r[1], im.Size()-r[0]); n > 0 {
				err = errors.Join(err, im.WriteZeroes(r[0], n))
			}
		}
	} else {
		const step = 1 << 30
		for off := int64(0); off < im.Size() && err == nil; off += step {
			if err = ctx.Err(); err == nil {
				err = im.Discard(off, min(step, im.Size()-off))
			}
		}
	}
	if err == nil {
		err = im.Flush()
	}
	if err == nil {
		zeroed, err = im.Blank()
	}
	if err != nil {
		return false, fmt.Errorf("wipe unfinished format: %w", err)
	}
	return zeroed, nil
}

// bringUpFilesystem formats where the plan says so, checks, grows, mounts, and
// records that the volume may hold data.
func (m *Manager) bringUpFilesystem(ctx context.Context, v *volume, rec pool.Volume, todo fsWork) error {
	e, id := v.entry, v.entry.Volume
	if todo.format {
		if err := m.cfg.Volumes.BeginFormat(ctx, id, e.FSType); err != nil { // I-NODE-5
			return err
		}
		m.step("formatting")
		if err := m.mkfs(ctx, e.FSType, rec.Params.MkfsOptions, e.Device.Path, todo.zeroed); err != nil {
			return err
		}
		m.step("formatted")
	} else if err := m.prepare(ctx, e, todo.grow); err != nil {
		return err
	}
	if err := m.mountStaging(ctx, v, e.Staging[0]); err != nil {
		return err
	}
	m.step("mounted")
	if e.ReadOnly {
		return nil
	}
	if todo.grow && e.FSType != "ext4" && !slices.Contains(e.MountFlags, "ro") {
		err := m.growMounted(ctx, e.FSType, e.Device.Path, e.Staging[0], v.size)
		if errors.Is(err, ErrInvalid) {
			klog.FromContext(ctx).Error(err, "Filesystem stays smaller than its device", "volume", id)
		} else if err != nil {
			return err
		}
	}
	if rec.Use != pool.UseMounted {
		if err := m.cfg.Volumes.SetUse(ctx, id, pool.UseMounted); err != nil { // I-NODE-5
			return err
		}
	}
	m.step("used")
	return nil
}

// prepare checks a filesystem that is there, and grows it if that must be done
// before it is mounted.
func (m *Manager) prepare(ctx context.Context, e entry, grow bool) error {
	if e.ReadOnly || e.FSType != "ext4" {
		return nil // xfs and btrfs replay their log when they are mounted
	}
	if err := m.check(ctx, e.Device, grow); err != nil {
		return err
	}
	m.step("checked")
	if grow {
		return m.growUnmounted(ctx, e.Device.Path)
	}
	return nil
}

// mountStaging mounts and looks whether that is what can be seen there.
func (m *Manager) mountStaging(ctx context.Context, v *volume, path string) error {
	if err := m.mount(ctx, v.entry, path); err != nil {
		return err
	}
	t, err := readMounts()
	if err != nil {
		return err
	}
	if mi := t.at(path); mi == nil || !v.entry.owns(mi) {
		return fmt.Errorf("mount %s at %s: it does not show in the mount table", v.entry.Device.Path, path)
	}
	return nil
}

// fault says why the staged filesystem takes no more writes although it was
// mounted for them; "" if it does.
func (m *Manager) fault(ctx context.Context, v *volume, path string) (string, error) {
	if v.entry.ReadOnly || v.entry.Block {
		return "", nil
	}
	t, err := readMounts()
	if err != nil {
		return "", err
	}
	mi := t.at(path)
	if mi == nil || !v.entry.owns(mi) {
		return "", nil
	}
	// ext4 shows emergency_ro and shutdown while the mount still says rw.
	for _, o := range []string{"ro", "emergency_ro", "shutdown"} {
		if has(mi.VFSOptions, o) && !slices.Contains(v.entry.MountFlags, o) {
			return fmt.Sprintf("%s at %s is %s after an error", mi.FSType, path, o), nil
		}
	}
	if v.entry.FSType != "xfs" {
		return "", nil
	}
	_, err = m.tools.self(ctx, m.cfg.Deadlines.Stat, cmdAlive, path)
	if errors.Is(err, unix.EIO) {
		return fmt.Sprintf("xfs at %s has shut down", path), nil
	}
	if err != nil {
		klog.FromContext(ctx).Error(err, "Look at a staged filesystem", "volume", v.entry.Volume)
	}
	return "", err
}
