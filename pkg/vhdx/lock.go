package vhdx

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// locker is a file whose lock can be changed while it is open. Not every [File]
// has one.
type locker interface{ lock(exclusive bool) error }

var _ locker = (*OSFile)(nil)

func (f *OSFile) lock(exclusive bool) error {
	err := lockFile(f.f, exclusive)
	f.locked = f.locked || err == nil
	return err
}

// lockFile takes an OFD lock on the whole file, and does not wait: [ErrInUse].
func lockFile(f *os.File, exclusive bool) error {
	typ := int16(unix.F_RDLCK)
	if exclusive {
		typ = unix.F_WRLCK
	}
	err := setLock(f, typ)
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%s: another process has it open: %w", f.Name(), ErrInUse)
	case err != nil:
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return nil
}

// unlockFile gives the lock up. Closing alone would not, as long as a child
// that this process has begun to start has not come to its exec.
func unlockFile(f *os.File) error {
	if err := setLock(f, unix.F_UNLCK); err != nil {
		return fmt.Errorf("unlock %s: %w", f.Name(), err)
	}
	return nil
}

func setLock(f *os.File, typ int16) error {
	l := unix.Flock_t{Type: typ}
	return retryEINTR(func() error { return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &l) })
}
