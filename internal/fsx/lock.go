package fsx

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// ErrLocked: another open file description holds a conflicting lock.
var ErrLocked = errors.New("locked")

// Range is a range of bytes to lock. Length 0 reaches to the end of the file,
// wherever that will be.
type Range struct{ Start, Length int64 }

// Whole is the whole file.
var Whole = Range{}

// TryLock takes an OFD lock on f's open file description, shared or exclusive,
// and does not wait: ErrLocked. Taking it again on the same description
// changes it. It ends with Unlock or when the description is closed.
func TryLock(f *os.File, r Range, exclusive bool) error {
	typ := int16(unix.F_RDLCK)
	if exclusive {
		typ = unix.F_WRLCK
	}
	err := setLock(f, r, typ)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return ErrLocked
	}
	return named("lock", f.Name(), err)
}

// Unlock gives a range up.
func Unlock(f *os.File, r Range) error {
	return named("unlock", f.Name(), setLock(f, r, unix.F_UNLCK))
}

func setLock(f *os.File, r Range, typ int16) error {
	return withFD(f, func(fd int) error {
		lk := unix.Flock_t{Type: typ, Whence: 0, Start: r.Start, Len: r.Length}
		for {
			err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lk)
			if !errors.Is(err, unix.EINTR) {
				return err
			}
		}
	})
}

// Dup is another descriptor of the same open file description: it has the same
// locks, and they last until both are closed.
func Dup(f *os.File) (*os.File, error) {
	fd := -1
	err := withFD(f, func(old int) (err error) {
		fd, err = unix.FcntlInt(uintptr(old), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, named("duplicate", f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
