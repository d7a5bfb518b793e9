package fuseloop

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/helper"
	"github.com/csi-vhdx/csi-driver-vhdx/internal/loopdev"
)

// The commands that run in children. Each may wait for the server, which is
// the parent (I-FL-6).
const (
	cmdAttach = "fuseloop-attach"
	cmdDetach = "fuseloop-detach"
	cmdResize = "fuseloop-resize"
	cmdAlive  = "fuseloop-alive"
	cmdStay   = "fuseloop-stay"
)

// Commands is what main gives to helper.RunIfHelper.
func Commands() []helper.Command {
	return []helper.Command{
		{Name: cmdAttach, Run: childAttach},
		{Name: cmdDetach, Run: childDetach},
		{Name: cmdResize, Run: func(c *helper.Child) error { return childResize(c.Args) }},
		{Name: cmdAlive, Run: func(c *helper.Child) error {
			n, tag, err := numberAndTag(c.Args)
			if err != nil {
				return err
			}
			return loopdev.Alive(n, tag)
		}},
		{Name: cmdStay, Run: func(c *helper.Child) error {
			n, tag, err := numberAndTag(c.Args)
			if err != nil {
				return err
			}
			return loopdev.Stay(n, tag)
		}},
	}
}

// childResize gets a device, its tag and the size it is to have.
func childResize(args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("want a device, a tag and a size, got %q", args)
	}
	n, tag, err := numberAndTag(args[:2])
	if err != nil {
		return err
	}
	want, err := strconv.ParseInt(args[2], 10, 64)
	if err != nil {
		return err
	}
	return loopdev.SetCapacity(n, tag, want)
}

func numberAndTag(args []string) (int, string, error) {
	if len(args) != 2 {
		return 0, "", fmt.Errorf("want a device and a tag, got %q", args)
	}
	n, err := loopdev.Number(args[0])
	return n, args[1], err
}

// attachArgs is what the child that attaches is told.
type attachArgs struct {
	tag       string
	blockSize int
	readOnly  bool
	maxIO     uint32 // the largest READ
	fault     string // test switch: the step to fail at
}

func (a attachArgs) strings() []string {
	return []string{a.tag, strconv.Itoa(a.blockSize), strconv.FormatBool(a.readOnly), strconv.FormatUint(uint64(a.maxIO), 10), a.fault}
}

func parseAttachArgs(args []string) (a attachArgs, err error) {
	if len(args) != 5 {
		return a, fmt.Errorf("want 5 arguments, got %q", args)
	}
	a.tag, a.fault = args[0], args[4]
	if a.blockSize, err = strconv.Atoi(args[1]); err != nil {
		return a, fmt.Errorf("block size: %w", err)
	}
	if a.readOnly, err = strconv.ParseBool(args[2]); err != nil {
		return a, fmt.Errorf("read-only: %w", err)
	}
	most, err := strconv.ParseUint(args[3], 10, 32)
	if err != nil {
		return a, fmt.Errorf("largest read: %w", err)
	}
	a.maxIO = uint32(most)
	return a, nil
}

// childAttach mounts the connection on descriptor 3 nowhere, puts a loop
// device on its one file and says on descriptor 4 which. Until it is told there
// that the parent has all it needs, the device goes with this process: however
// either of them dies, nothing is left. When the child ends, the device is all
// that keeps the mount.
func childAttach(c *helper.Child) error {
	a, err := parseAttachArgs(c.Args)
	if err != nil {
		return err
	}
	fuse, link := c.File(0), c.File(1)
	mount, err := mountDetached(int(fuse.Fd()), a)
	// The server alone must hold its descriptor: else a child that waits for
	// a server that has ended would keep the connection, and so itself, alive.
	_ = fuse.Close()
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(mount) }()
	flags := unix.O_RDWR
	if a.readOnly {
		flags = unix.O_RDONLY
	}
	fd, err := unix.Openat(mount, a.tag, flags|unix.O_CLOEXEC, 0)
	if err = failAt(a.fault, stepOpen, err); err != nil {
		return fmt.Errorf("open the file of the connection: %w", err)
	}
	file := os.NewFile(uintptr(fd), a.tag)
	defer func() { _ = file.Close() }()
	dev, err := loopdev.Begin(loopdev.Config{File: file, BlockSize: a.blockSize, ReadOnly: a.readOnly, Tag: a.tag})
	if err != nil {
		return err
	}
	defer dev.Close()
	if err := failAt(a.fault, stepConfigured, nil); err != nil {
		return err
	}
	if _, err := link.WriteString(dev.Path()); err != nil {
		return fmt.Errorf("tell the device: %w", err)
	}
	if n, err := link.Read(make([]byte, 1)); err != nil || n != 1 {
		return fmt.Errorf("the attach was given up: %w", cmpErr(err, io.ErrUnexpectedEOF))
	}
	if err := dev.Settle(); err != nil {
		return err
	}
	return failAt(a.fault, stepSettled, nil)
}

// mountDetached makes a mount of the connection that is in no mount table.
func mountDetached(fuse int, a attachArgs) (int, error) {
	ctx, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err = failAt(a.fault, stepFsopen, err); err != nil {
		return -1, fmt.Errorf("fsopen fuse: %w", err)
	}
	defer func() { _ = unix.Close(ctx) }()
	for _, kv := range [][2]string{
		{"source", "csi-vhdx"},
		{"fd", strconv.Itoa(fuse)},
		{"rootmode", "40000"},
		{"user_id", "0"},
		{"group_id", "0"},
		{"max_read", strconv.FormatUint(uint64(a.maxIO), 10)},
	} {
		if err := unix.FsconfigSetString(ctx, kv[0], kv[1]); err != nil {
			return -1, fmt.Errorf("fsconfig %s=%s: %w", kv[0], kv[1], err)
		}
	}
	if err := failAt(a.fault, stepFsconfig, unix.FsconfigCreate(ctx)); err != nil {
		return -1, fmt.Errorf("create FUSE superblock: %w", err)
	}
	mount, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC|unix.MOUNT_ATTR_NOATIME)
	if err = failAt(a.fault, stepFsmount, err); err != nil {
		return -1, fmt.Errorf("fsmount: %w", err)
	}
	return mount, nil
}

// childDetach removes the device, and prints what a failed sync said.
func childDetach(c *helper.Child) error {
	n, tag, err := numberAndTag(c.Args)
	if err != nil {
		return err
	}
	flushErr, err := loopdev.Detach(n, tag)
	if flushErr != nil {
		_, _ = fmt.Fprint(c.Stdout, flushErr)
	}
	return err
}

// The steps of an attach, for the test switch that fails one.
const (
	stepPreflight  = "preflight"
	stepOpenFuse   = "open-fuse"
	stepEngine     = "engine"
	stepNegotiate  = "negotiate"
	stepFsopen     = "fsopen"
	stepFsconfig   = "fsconfig"
	stepFsmount    = "fsmount"
	stepOpen       = "open"
	stepConfigured = "configured"
	stepKept       = "kept"
	stepSettled    = "settled"
	stepAttached   = "attached"
)

// reached is a test switch: it is called after each step, in the process that
// does it.
var reached = func(_ string) {}

var errFault = errors.New("failed by the test switch")

// failAt fails step where the switch says so, after the step has been done:
// err is its own outcome.
func failAt(fault, step string, err error) error {
	if err == nil {
		reached(step)
	}
	if err == nil && fault == step {
		return fmt.Errorf("%s: %w", step, errFault)
	}
	return err
}
