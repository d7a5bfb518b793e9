package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// mountTable is /proc/self/mountinfo, oldest mount first. Reading it waits for
// no device. (k8s.io/mount-utils would leave its paths escaped.)
type mountTable []*mountinfo.Info

func readMounts() (mountTable, error) {
	t, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	return t, nil
}

// at is what one sees at path: the last mount there. Nil: no mount.
func (t mountTable) at(path string) *mountinfo.Info {
	for _, mi := range slices.Backward(t) {
		if mi.Mountpoint == path {
			return mi
		}
	}
	return nil
}

// of gives where the filesystem of the device is mounted in this namespace.
func (t mountTable) of(d *deviceID) []string {
	var at []string
	for _, mi := range t {
		if d.hasFilesystem(mi) {
			at = append(at, mi.Mountpoint)
		}
	}
	return at
}

// deviceOf looks the device node up. It does not open the device.
func deviceOf(path string) (*deviceID, error) {
	major, minor, err := nodeNumber(path)
	if err != nil {
		return nil, err
	}
	return &deviceID{Path: path, Major: major, Minor: minor}, nil
}

func nodeNumber(path string) (major, minor uint32, err error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return 0, 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, 0, fmt.Errorf("%s is not a block device", path)
	}
	return unix.Major(st.Rdev), unix.Minor(st.Rdev), nil
}

// hasFilesystem reports whether mi is a mount of the filesystem on d (I-NODE-8).
func (d *deviceID) hasFilesystem(mi *mountinfo.Info) bool {
	if d == nil || mi == nil {
		return false
	}
	if mi.FSType == "btrfs" {
		// Its mounts have an anonymous number; the source is the kernel's own
		// record of the device, and a node that could be looked up.
		if !strings.HasPrefix(mi.Source, "/dev/") {
			return false
		}
		major, minor, err := nodeNumber(mi.Source)
		return err == nil && major == d.Major && minor == d.Minor
	}
	return uint32(mi.Major) == d.Major && uint32(mi.Minor) == d.Minor
}

// isNode reports whether mi is a bind mount of the device node of d itself.
// The number is that of the inode: the node that was bound, whatever is
// behind it today.
func (d *deviceID) isNode(mi *mountinfo.Info) bool {
	if d == nil || mi == nil || mi.Root == "/" || d.hasFilesystem(mi) {
		return false
	}
	if mi.FSType != "devtmpfs" && mi.FSType != "tmpfs" {
		return false // nothing else is stat'ed: it may wait on another device
	}
	major, minor, err := nodeNumber(mi.Mountpoint)
	return err == nil && major == d.Major && minor == d.Minor
}

func (e entry) owns(mi *mountinfo.Info) bool {
	if e.Block {
		return e.Device.isNode(mi)
	}
	return e.Device.hasFilesystem(mi)
}

func describe(mi *mountinfo.Info) string {
	return fmt.Sprintf("%s (%s, device %d:%d) at %s", mi.Source, mi.FSType, mi.Major, mi.Minor, mi.Mountpoint)
}

func has(options, option string) bool {
	return slices.Contains(strings.Split(options, ","), option)
}

// realPath resolves the symbolic links above path, as the mount table does,
// and leaves its last element, which may be a mount of ours.
func realPath(path string) string {
	dir, rest := filepath.Split(filepath.Clean(path))
	for dir = filepath.Clean(dir); ; {
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			return filepath.Join(real, rest)
		}
		if dir == "/" || dir == "." {
			return filepath.Clean(path)
		}
		rest = filepath.Join(filepath.Base(dir), rest)
		dir = filepath.Dir(dir)
	}
}

// unmountOwn unmounts what the entry proves to be its own at path, and nothing
// else. ErrBusy: it is in use.
func (m *Manager) unmountOwn(ctx context.Context, e entry, path string, flags int) error {
	const most = 8 // mounts on top of each other
	for range most {
		t, err := readMounts()
		if err != nil {
			return err
		}
		mi := t.at(path)
		if mi == nil || !e.owns(mi) {
			return nil
		}
		if err := m.unmount(ctx, path, flags); err != nil {
			return err
		}
	}
	return fmt.Errorf("unmount %s: %w: more than %d mounts there", path, ErrBusy, most)
}

func (m *Manager) unmount(ctx context.Context, path string, flags int) error {
	_, err := m.tools.self(ctx, m.cfg.Deadlines.Unmount, cmdUmount, path, strconv.Itoa(flags))
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: %w", ErrBusy, err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		return nil // no mount any more
	}
	return err
}

// bind makes source appear at target with the attributes of a mount.
func (m *Manager) bind(ctx context.Context, source, target string, a mountAttrs) error {
	_, err := m.tools.self(ctx, m.cfg.Deadlines.Mount, cmdBind, source, target,
		strconv.FormatUint(a.set, 10), strconv.FormatUint(a.clear, 10))
	return err
}
