package node

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/helper"
)

// FIFREEZE and FITHAW of linux/fs.h: _IOWR('X', 119 and 120, int).
const (
	ioctlFreeze = 0xc0045877
	ioctlThaw   = 0xc0045878
)

// What runFreeze says.
const (
	saidFrozen = "frozen"
	saidBusy   = "frozen by somebody else"
)

// runFreeze PATH MILLISECONDS syncs and freezes a filesystem, says so, and
// thaws it when its input or the time ends, the latter as ETIME. Whoever has
// started it may have died.
func runFreeze(c *helper.Child) error {
	if err := wantArgs(c, 2); err != nil {
		return err
	}
	limit, err := strconv.Atoi(c.Args[1])
	if err != nil {
		return err
	}
	signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGPIPE)
	f, err := os.OpenFile(c.Args[0], os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	ended := make(chan struct{})
	go func() {
		io.Copy(io.Discard, c.Stdin) //nolint:errcheck // its end is what counts
		close(ended)
	}()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", c.Args[0], err)
	}
	said := saidFrozen
	switch err := unix.IoctlSetInt(int(f.Fd()), ioctlFreeze, 0); {
	case errors.Is(err, unix.EBUSY):
		said = saidBusy
	case err != nil:
		return fmt.Errorf("freeze %s: %w", c.Args[0], err)
	}
	fmt.Println(said) //nolint:forbidigo // it is what the parent waits for
	late := false
	select {
	case <-ended:
	case <-time.After(time.Duration(limit) * time.Millisecond):
		late = true
	}
	if said == saidFrozen {
		if err := unix.IoctlSetInt(int(f.Fd()), ioctlThaw, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("thaw %s: %w", c.Args[0], err)
		}
	}
	if late {
		return unix.ETIME
	}
	return nil
}

// runThaw PATH thaws a filesystem. One that is not frozen is success.
func runThaw(c *helper.Child) error {
	return withDir(c, func(f *os.File) error {
		if err := unix.IoctlSetInt(int(f.Fd()), ioctlThaw, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return err
		}
		return nil
	})
}
