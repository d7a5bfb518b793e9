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
