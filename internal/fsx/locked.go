package fsx

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Locked reports whether another open file description has a lock on any byte
// of the range, shared or exclusive. It takes none itself, and needs no right to write.
func Locked(f *os.File, r Range) (bool, error) {
	lk := unix.Flock_t{Type: unix.F_WRLCK, Whence: 0, Start: r.Start, Len: r.Length}
	err := withFD(f, func(fd int) error {
		for {
			err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &lk)
			if !errors.Is(err, unix.EINTR) {
				return err
			}
		}
	})
	if err != nil {
		return false, named("look for a lock on", f.Name(), err)
	}
	return lk.Type != unix.F_UNLCK, nil
}
