package loopdev

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Each wraps the errno by which a parent of a helper process knows it.
var (
	// ErrBusy: the device is mounted, held or open. It stays as it is.
	ErrBusy = fmt.Errorf("loop device is in use: %w", unix.EBUSY)
	// ErrNotBound: no such device, or it serves something else now.
	ErrNotBound = fmt.Errorf("loop device is not bound to this file: %w", unix.ENXIO)
	// ErrDead: the server of the backing file is no more.
	ErrDead = fmt.Errorf("server of the loop device is gone: %w", unix.ENOTCONN)
)

const (
	// Other users of loop devices may win the free one each time.
	configureTries = 64
	// A udev rule may open a device for a moment after any change.
	busyPatience = 100 * time.Millisecond
	busyStep     = time.Millisecond
)

// Config says what to attach.
type Config struct {
	File      *os.File
	BlockSize int // logical: 512 or 4096
	ReadOnly  bool
	Tag       string // at most 63 bytes
}

// Attach makes a loop device with direct I/O and returns its path.
func Attach(c Config) (string, error) {
	d, err := Begin(c)
	if err != nil {
		return "", err
	}
	if err := d.Settle(); err != nil {
		return "", err
	}
	return d.Path(), nil
}

// Unsettled is a loop device that the kernel removes when the last process that
// has it open closes it, or dies: so long as this process alone knows of it,
// it cannot be left behind.
type Unsettled struct {
	n, fd int
	tag   string
}

// Begin makes a loop device with direct I/O that goes unless it is settled.
func Begin(c Config) (*Unsettled, error) {
	ctl, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/loop-control: %w", err)
	}
	defer func() { _ = unix.Close(ctl) }()
	for range configureTries {
		n, err := unix.IoctlRetInt(ctl, unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("ask for a free loop device: %w", err)
		}
		switch fd, err := configure(n, c); {
		case err == nil:
			return &Unsettled{n: n, fd: fd, tag: c.Tag}, nil
		case !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENXIO):
			return nil, err
		}
		// Somebody else was faster.
	}
	return nil, fmt.Errorf("no free loop device in %d tries: %w", configureTries, unix.EBUSY)
}

// Path of the device node.
func (u *Unsettled) Path() string { return Path(u.n) }

// Settle makes the device stay. It waits for requests in flight.
func (u *Unsettled) Settle() error {
	defer u.Close()
	return autoclear(u.fd, u.n, u.tag, false)
}

// Close gives the device up, if it has not been settled.
func (u *Unsettled) Close() {
	if u.fd >= 0 {
		_ = unix.Close(u.fd)
		u.fd = -1
	}
}

// configure returns the open device.
func configure(n int, c Config) (int, error) {
	flags := unix.O_RDWR
	if c.ReadOnly {
		flags = unix.O_RDONLY
	}
	fd, err := open(n, flags)
	if err != nil {
		return -1, err
	}
	if err := bind(n, fd, c); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func bind(n, fd int, c Config) error {
	lc := unix.LoopConfig{Fd: uint32(c.File.Fd()), Size: uint32(c.BlockSize), Info: info(c.Tag)}
	lc.Info.Flags = unix.LO_FLAGS_DIRECT_IO | unix.LO_FLAGS_AUTOCLEAR
	if c.ReadOnly {
		lc.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	if err := unix.IoctlLoopConfigure(fd, &lc); err != nil {
		return fmt.Errorf("configure %s: %w", Path(n), err)
	}
	// The kernel takes the flag as a wish.
	if dio := attribute(n, "dio"); dio != "1" {
		return fmt.Errorf("configure %s: no direct I/O with blocks of %d bytes on this backing file", Path(n), c.BlockSize)
	}
	return nil
}

func info(tag string) (i unix.LoopInfo64) {
	copy(i.File_name[:len(i.File_name)-1], tag)
	return i
}

// open opens loop device n, whose node a /dev of its own may lack.
func open(n, flags int) (int, error) {
	path := Path(n)
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		err = unix.Mknod(path, unix.S_IFBLK|0o660, int(unix.Mkdev(loopMajor, uint32(n))))
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return -1, fmt.Errorf("make %s: %w", path, err)
		}
		fd, err = unix.Open(path, flags|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", path, err)
	}
	return fd, nil
}

// Detach removes the device if it is bound to tag and nobody uses it.
// [ErrBusy], [ErrNotBound]. A failed sync does not keep the device; it comes
// back as flushErr.
func Detach(n int, tag string) (flushErr, err error) {
	fd, err := openExclusive(n)
	if err != nil {
		return nil, err
	}
	if !bound(n, tag) {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("%s: %w", Path(n), ErrNotBound)
	}
	if err := unix.Fsync(fd); err != nil {
		flushErr = fmt.Errorf("sync %s: %w", Path(n), err)
	}
	err = autoclear(fd, n, tag, true)
	_ = unix.Close(fd) // writes what is dirty; removes the device if nobody has it
	if err != nil {
		return flushErr, err
	}
	for end := time.Now().Add(busyPatience); bound(n, tag); time.Sleep(busyStep) {
		if time.Now().After(end) {
			return flushErr, takeBack(n, tag)
		}
	}
	return flushErr, nil
}

// openExclusive opens the device as its only owner. It is opened read-only:
// that is enough for everything here, and works on read-only devices.
func openExclusive(n int) (int, error) {
	for end := time.Now().Add(busyPatience); ; time.Sleep(busyStep) {
		fd, err := open(n, unix.O_RDONLY|unix.O_EXCL)
		switch {
		case err == nil:
			return fd, nil
		case errors.Is(err, unix.ENXIO):
			return -1, fmt.Errorf("%s: %w", Path(n), ErrNotBound)
		case !errors.Is(err, unix.EBUSY):
			return -1, err
		case time.Now().After(end):
			return -1, fmt.Errorf("%s is mounted or held by another device: %w", Path(n), ErrBusy)
		}
	}
}

// takeBack makes a device that somebody has open stay when it is closed.
func takeBack(n int, tag string) error {
	if err := Stay(n, tag); err != nil {
		if errors.Is(err, ErrNotBound) {
			return nil // closed meanwhile, and gone
		}
		return err
	}
	return fmt.Errorf("%s is open: %w", Path(n), ErrBusy)
}

// Leaving reports whether the device goes when it is closed next: a detach of
// it, or an attach, was cut off. It reads sysfs only.
func Leaving(n int) bool { return attribute(n, "autoclear") == "1" }

// Stay makes a device stay that is [Leaving].
func Stay(n int, tag string) error {
	fd, err := open(n, unix.O_RDONLY)
	if errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("%s: %w", Path(n), ErrNotBound)
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if !bound(n, tag) {
		return fmt.Errorf("%s: %w", Path(n), ErrNotBound)
	}
	return autoclear(fd, n, tag, false)
}

func autoclear(fd, n int, tag string, on bool) error {
	i := info(tag)
	if on {
		i.Flags = unix.LO_FLAGS_AUTOCLEAR
	}
	if err := unix.IoctlLoopSetStatus64(fd, &i); err != nil {
		return fmt.Errorf("set autoclear of %s: %w", Path(n), err)
	}
	return nil
}

// capacityTries is how long SetCapacity asks again.
const capacityTries = 20 * time.Second

// SetCapacity makes the device as large as its backing file, which has want
// bytes at least.
func SetCapacity(n int, tag string, want int64) error {
	fd, err := open(n, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if !bound(n, tag) {
		return fmt.Errorf("%s: %w", Path(n), ErrNotBound)
	}
	for until := time.Now().Add(capacityTries); ; time.Sleep(time.Millisecond) {
		// Before Linux 6.16 loop believes the size in the kernel's inode, which is
		// that of the last time somebody asked for the file's attributes. This asks.
		if _, err := unix.IoctlLoopGetStatus64(fd); err != nil {
			return fmt.Errorf("ask for the status of %s: %w", Path(n), err)
		}
		if err := unix.IoctlSetInt(fd, unix.LOOP_SET_CAPACITY, 0); err != nil {
			return fmt.Errorf("set capacity of %s: %w", Path(n), err)
		}
		// FUSE drops the answer that a write's end overtakes.
		if Size(n) >= want || time.Now().After(until) {
			return nil
		}
	}
}

// Alive asks the server of the backing file for its attributes: nil when it
// answers, [ErrDead] when the kernel knows that it never will. It waits as
// long as neither is so.
func Alive(n int, tag string) error {
	fd, err := open(n, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if !bound(n, tag) {
		return fmt.Errorf("%s: %w", Path(n), ErrNotBound)
	}
	switch _, err := unix.IoctlLoopGetStatus64(fd); {
	case errors.Is(err, unix.ENOTCONN), errors.Is(err, unix.ECONNABORTED):
		return fmt.Errorf("%s: %w", Path(n), ErrDead)
	case err != nil:
		return fmt.Errorf("ask for the status of %s: %w", Path(n), err)
	}
	return nil
}
