package uring

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Map gives n bytes of zeroed memory outside the Go heap that are resident
// and locked: the kernel copies to and from them even while the process is
// being killed, when every page fault fails.
func Map(n int) ([]byte, error) {
	mem, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map %d KiB for buffers: %w", n>>10, err)
	}
	// Large pages are fewer to look up; a kernel without them says EINVAL.
	_ = unix.Madvise(mem, unix.MADV_HUGEPAGE)
	// A child between fork and exec would make the parent copy pages on write.
	_ = unix.Madvise(mem, unix.MADV_DONTFORK)
	// MAP_LOCKED answers success even when it could not populate; mlock tells.
	if err := unix.Mlock(mem); err != nil {
		_ = unix.Munmap(mem)
		return nil, fmt.Errorf("lock %d KiB of buffers: %w%s", n>>10, err, lockHint(err))
	}
	return mem, nil
}

func lockHint(err error) string {
	if !errors.Is(err, unix.ENOMEM) && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EAGAIN) {
		return ""
	}
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &lim) != nil || lim.Cur == unix.RLIM_INFINITY {
		return ""
	}
	return fmt.Sprintf(" (the limit RLIMIT_MEMLOCK is %d KiB: raise it, or grant CAP_IPC_LOCK)", lim.Cur>>10)
}

// Unmap gives mem back. Nothing may be under way in it.
func Unmap(mem []byte) error { return unix.Munmap(mem) }
