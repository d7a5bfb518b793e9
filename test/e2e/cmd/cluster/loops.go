package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// detachLoops frees the driver's loop devices, and those that kubelet puts over
// the raw ones as a lock. The driver's journal in state has an entry for each
// device that exists; entry and backing file are named after one hash of the
// volume's id. Devices of this driver that are another plugin's are not even
// opened: their server may hang.
func detachLoops(state string) error {
	entries, _ := filepath.Glob(filepath.Join(state, "node", "entries", "*.json")) // the pattern is well-formed
	tags := map[string]bool{}
	for _, e := range entries {
		hash := filepath.Base(e)
		tags["csi-vhdx-"+hash[:min(32, len(hash))]] = true
	}
	devices, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	ours, locks := map[uint64]string{}, []string{}
	for _, d := range devices {
		content, err := os.ReadFile(d)
		if err != nil {
			continue // it went away
		}
		node := filepath.Join("/dev", strings.Split(d, "/")[3])
		backing := strings.TrimSpace(string(content))
		var stat unix.Stat_t
		switch base, _, _ := strings.Cut(filepath.Base(backing), " "); {
		case tags[base]:
			if err := unix.Stat(node, &stat); err == nil {
				ours[stat.Rdev] = node
			}
		case !strings.Contains(backing, "csi-vhdx-"):
			locks = append(locks, node)
		}
	}
	var errs []error
	for _, node := range locks {
		if backing, err := backingDevice(node); err == nil && ours[backing] != "" {
			errs = append(errs, detach(node))
		}
	}
	for _, node := range ours {
		errs = append(errs, detach(node))
	}
	return errors.Join(errs...)
}

// backingDevice is the number of the block device that the loop device is on.
func backingDevice(node string) (uint64, error) {
	fd, err := unix.Open(node, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(fd) }()
	info, err := unix.IoctlLoopGetStatus64(fd)
	if err != nil {
		return 0, err
	}
	return info.Rdevice, nil
}

func detach(node string) error {
	fd, err := unix.Open(node, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = errors.Join(unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0), unix.Close(fd))
	}
	if err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("detach %s: %w", node, err)
	}
	return nil
}
