package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/klog/v2"
	"k8s.io/mount-utils"
)

var fsTypes = []string{"ext4", "xfs", "btrfs"}

func unknownFSType(t string) error {
	return fmt.Errorf("%w: filesystem type %q; known: %s", ErrInvalid, t, strings.Join(fsTypes, ", "))
}

// mkfs makes a filesystem. The caller has proven that nothing is lost
// (I-NODE-4). zeroed: the whole device reads zero.
func (m *Manager) mkfs(ctx context.Context, fsType, options, device string, zeroed bool) error {
	user, err := parseMkfsOptions(fsType, options)
	if err != nil {
		return err
	}
	name, args := mkfsCommand(fsType, user, device, zeroed)
	m.step("mkfs")
	_, err = m.tools.run(ctx, m.cfg.Deadlines.Format, name, args...)
	if code, stderr, ok := exit(err); ok && code > 0 {
		return fmt.Errorf("%w: %s %s: exit code %d: %s", ErrFormat, name, strings.Join(args, " "), code, oneLine(stderr))
	}
	if err != nil {
		return fmt.Errorf("make %s on %s: %w", fsType, device, err)
	}
	return nil
}

// mkfsCommand adds to the user's options what this driver wants; where both
// set the same thing the user wins. Never discard: what is unallocated in the
// image already is, and a fixed image wants to keep its space.
func mkfsCommand(fsType string, user []string, device string, zeroed bool) (name string, args []string) {
	given := func(options ...string) bool {
		return slices.ContainsFunc(options, func(o string) bool { return slices.Contains(user, o) })
	}
	add := func(option string, value ...string) {
		if !given(option) {
			args = append(append(args, option), value...)
		}
	}
	switch fsType {
	case "ext4":
		extended := "nodiscard,lazy_itable_init=1,lazy_journal_init=0"
		if zeroed {
			// Neither mkfs nor, after the first mount, the kernel has to write
			// zeros into inode tables; thin images stay thin.
			extended = "nodiscard,assume_storage_prezeroed=1"
		}
		if i := slices.Index(user, "-E"); i >= 0 {
			extended += "," + user[i+1]
			user = slices.Delete(slices.Clone(user), i, i+2)
		}
		args = []string{"-F", "-q", "-E", extended}
		add("-m", "0")          // nothing on a data volume needs root's reserve
		add("-e", "remount-ro") // on damage stop, the default goes on
		add("-b", "4096")       // smaller ones make every write a read-modify-write
	case "xfs":
		args = []string{"-f", "-q"}
		add("-K")
		add("-s", "size=4096") // or its log writes 512-byte sectors
	case "btrfs":
		args = []string{"-f", "-q"}
		if !given("--nodiscard") {
			add("-K")
		}
	}
	return "mkfs." + fsType, append(append(args, user...), device)
}

// check repairs an ext4 as far as that needs no person, before the first write.
func (m *Manager) check(ctx context.Context, d *deviceID, full bool) error {
	args := []string{"-p", d.Path}
	if full { // resize2fs insists
		args = []string{"-f", "-p", d.Path}
	}
	out, err := m.tools.run(ctx, m.cfg.Deadlines.Check, "e2fsck", args...)
	code, stderr, ok := exit(err)
	if !ok || code < 0 {
		return err
	}
	// A sum of bits: 1 corrected, 2 reboot (of no meaning for what is not
	// mounted), 4 errors left, 8 operational error, 16 usage, 32 cancelled.
	said := oneLine(string(out) + " " + stderr)
	switch left := code &^ (1 | 2); {
	case left == 0:
		klog.FromContext(ctx).Info("Filesystem check corrected errors", "device", d.Path, "output", said)
		return nil
	case left == 4, left == 8 && m.read(ctx, d) == nil: // 8 is a broken superblock too
		return fmt.Errorf("%w: e2fsck leaves errors that need a person; attach the image with vhdxctl and run e2fsck there: %s",
			ErrNoFilesystem, said)
	}
	return fmt.Errorf("check %s: e2fsck exit code %d: %s", d.Path, code, said)
}

// growUnmounted lets an ext4 follow its device while nothing has it mounted:
// online that takes CAP_SYS_RESOURCE.
func (m *Manager) growUnmounted(ctx context.Context, device string) error {
	if _, err := m.tools.run(ctx, m.cfg.Deadlines.Resize, "resize2fs", device); err != nil {
		return fmt.Errorf("grow ext4 on %s: %w", device, err)
	}
	return nil
}

// growMounted lets a mounted filesystem follow its device, which has size
// bytes. ErrInvalid: it never can.
func (m *Manager) growMounted(ctx context.Context, fsType, device, path string, size int64) error {
	var err error
	switch fsType {
	case "xfs":
		_, err = m.tools.run(ctx, m.cfg.Deadlines.Resize, "xfs_growfs", "-d", path)
	case "btrfs":
		if size < minBtrfsResize {
			return fmt.Errorf("%w: the kernel resizes no btrfs to less than %d bytes, the device has %d", ErrInvalid, minBtrfsResize, size)
		}
		_, err = m.tools.run(ctx, m.cfg.Deadlines.Resize, "btrfs", "filesystem", "resize", "max", path)
	case "ext4":
		_, err = m.tools.run(ctx, m.cfg.Deadlines.Resize, "resize2fs", device)
		if _, stderr, ok := exit(err); ok && strings.Contains(stderr, "Permission denied") {
			return fmt.Errorf("%w: ext4 on %s: the plugin lacks CAP_SYS_RESOURCE: %s", ErrOfflineOnly, device, oneLine(stderr))
		}
	}
	if err != nil {
		return fmt.Errorf("grow %s at %s: %w", fsType, path, err)
	}
	return nil
}

// mount mounts the filesystem of the device.
func (m *Manager) mount(ctx context.Context, e entry, path string) error {
	options := slices.Clone(e.MountFlags)
	if e.FSType == "xfs" {
		// A clone has the uuid of its source, and both may be on this node.
		options = append(options, "nouuid")
	}
	if !e.ReadOnly {
		return m.mountWith(ctx, e, path, options)
	}
	options = append(options, "ro")
	err := m.mountWith(ctx, e, path, options)
	if err == nil || errors.Is(err, ErrStuck) {
		return err
	}
	// A log that wants to be replayed cannot be on a read-only device.
	asIs := map[string]string{"ext4": "noload", "xfs": "norecovery", "btrfs": "rescue=nologreplay"}[e.FSType]
	if m.mountWith(ctx, e, path, append(options, asIs)) == nil {
		return nil
	}
	return err
}

func (m *Manager) mountWith(ctx context.Context, e entry, path string, options []string) error {
	_, err := m.tools.run(ctx, m.cfg.Deadlines.Mount, "mount", mount.MakeMountArgs(e.Device.Path, path, e.FSType, options)...)
	if _, stderr, ok := exit(err); ok {
		return fmt.Errorf("%w: the %s on %s does not mount, or not with its mount flags: %s",
			ErrNoFilesystem, e.FSType, e.Device.Path, oneLine(stderr))
	}
	return err
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
