package blockdev

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// SetIOFlusher marks the calling thread as one that memory reclaim may wait
// for: what it allocates in the kernel never waits for block I/O, which may be
// the I/O that it serves (I-DEV-6).
//
// The mark is of the thread, is inherited by what it clones or forks, and
// survives execve. So a supervisor sets it on a locked thread and starts the
// server from there, which marks every thread of the server; a backend sets it
// once more on the thread that serves. It needs CAP_SYS_RESOURCE: EPERM says
// that the process does without, which matters only when the node runs out of
// memory while dirty pages of a volume wait to be written.
func SetIOFlusher() error {
	if err := unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("mark the thread as a server of block I/O (PR_SET_IO_FLUSHER, needs CAP_SYS_RESOURCE): %w", err)
	}
	return nil
}
