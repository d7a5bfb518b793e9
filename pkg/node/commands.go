package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/helper"
)

const (
	cmdBind   = "node-bind"
	cmdUmount = "node-umount"
	cmdStatfs = "node-statfs"
	cmdSyncfs = "node-syncfs"
	cmdAlive  = "node-alive"
	cmdRead   = "node-read"
	cmdFreeze = "node-freeze"
	cmdThaw   = "node-thaw"
)

// Commands are the functions of this package that run in a process of their
// own, because they can wait on a served device (I-NODE-9).
func Commands() []helper.Command {
	return []helper.Command{
		{Name: cmdBind, Run: runBind},
		{Name: cmdUmount, Run: runUmount},
		{Name: cmdStatfs, Run: runStatfs},
		{Name: cmdSyncfs, Run: runSyncfs},
		{Name: cmdAlive, Run: runAlive},
		{Name: cmdRead, Run: runRead},
		{Name: cmdFreeze, Run: runFreeze},
		{Name: cmdThaw, Run: runThaw},
	}
}

func wantArgs(c *helper.Child, n int) error {
	if len(c.Args) != n {
		return fmt.Errorf("%d arguments, want %d", len(c.Args), n)
	}
	return nil
}

// runBind SOURCE TARGET SET CLEAR makes a bind mount that has its attributes
// from the moment it is visible.
func runBind(c *helper.Child) error {
	if err := wantArgs(c, 4); err != nil {
		return err
	}
	var attr unix.MountAttr
	var err error
	if attr.Attr_set, err = strconv.ParseUint(c.Args[2], 0, 64); err != nil {
		return err
	}
	if attr.Attr_clr, err = strconv.ParseUint(c.Args[3], 0, 64); err != nil {
		return err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, c.Args[0], unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return fmt.Errorf("clone mount %s: %w", c.Args[0], err)
	}
	if attr.Attr_set|attr.Attr_clr != 0 {
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return fmt.Errorf("set mount attributes %#x (Linux 5.12 or later): %w", attr.Attr_set, err)
		}
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, c.Args[1], unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("bind mount %s to %s: %w", c.Args[0], c.Args[1], err)
	}
	return nil
}

// runUmount PATH FLAGS
func runUmount(c *helper.Child) error {
	if err := wantArgs(c, 2); err != nil {
		return err
	}
	flags, err := strconv.Atoi(c.Args[1])
	if err != nil {
		return err
	}
	if err := unix.Unmount(c.Args[0], flags|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmount %s: %w", c.Args[0], err)
	}
	return nil
}

// runStatfs PATH answers a Stats in JSON.
func runStatfs(c *helper.Child) error {
	if err := wantArgs(c, 1); err != nil {
		return err
	}
	var s unix.Statfs_t
	if err := unix.Statfs(c.Args[0], &s); err != nil {
		return fmt.Errorf("statfs %s: %w", c.Args[0], err)
	}
	unit := s.Frsize
	if unit == 0 {
		unit = s.Bsize
	}
	return json.NewEncoder(c.Stdout).Encode(Stats{
		Bytes:  Usage{Total: int64(s.Blocks) * unit, Used: int64(s.Blocks-s.Bfree) * unit, Available: int64(s.Bavail) * unit},
		Inodes: Usage{Total: int64(s.Files), Used: int64(s.Files - s.Ffree), Available: int64(s.Ffree)},
	})
}

// runSyncfs PATH
func runSyncfs(c *helper.Child) error {
	return withDir(c, func(f *os.File) error { return unix.Syncfs(int(f.Fd())) })
}

// runAlive PATH fails where the filesystem has shut down: xfs then answers EIO
// to everything, and shows nothing of it in the mount table.
func runAlive(c *helper.Child) error {
	return withDir(c, func(f *os.File) error {
		_, err := f.Stat()
		return err
	})
}

func withDir(c *helper.Child, do func(*os.File) error) error {
	if err := wantArgs(c, 1); err != nil {
		return err
	}
	f, err := os.OpenFile(c.Args[0], os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := do(f); err != nil {
		return fmt.Errorf("%s: %w", c.Args[0], err)
	}
	return nil
}

// runRead PATH MAJOR MINOR reads the first page of a device past the page
// cache. Success means that somebody serves it still, EIO that nobody does.
func runRead(c *helper.Child) error {
	if err := wantArgs(c, 3); err != nil {
		return err
	}
	f, err := os.OpenFile(c.Args[0], os.O_RDONLY|unix.O_DIRECT, 0)
	if errors.Is(err, unix.ENXIO) {
		return unix.EIO // a node without a device
	}
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if major, minor := unix.Major(st.Rdev), unix.Minor(st.Rdev); fmt.Sprint(major, minor) != c.Args[1]+" "+c.Args[2] {
		return fmt.Errorf("%s is device %d:%d now", c.Args[0], major, minor)
	}
	// Page aligned, as O_DIRECT wants it.
	buf, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	if n, err := unix.Pread(int(f.Fd()), buf, 0); err != nil {
		return fmt.Errorf("read %s: %w", c.Args[0], err)
	} else if n == 0 {
		return unix.EIO
	}
	return nil
}
