package main

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// blkDiscard discards a range of a block device.
func blkDiscard(f *os.File, off, n int64) error {
	span := [2]uint64{uint64(off), uint64(n)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&span)))
	if errno != 0 {
		return errno
	}
	return nil
}

// fiTrim is FITRIM of linux/fs.h, the same on all machines that Go knows but for
// those whose ioctls carry their direction otherwise.
const fiTrim = 0xc0185879

// fitrim has the filesystem of an open file discard free space of its device.
func fitrim(f *os.File, off, n int64) error {
	span := [3]uint64{uint64(off), uint64(n), 0}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fiTrim, uintptr(unsafe.Pointer(&span)))
	if errno != 0 {
		return errno
	}
	return nil
}
