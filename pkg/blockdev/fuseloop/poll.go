package fuseloop

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// The engine where io_uring is not allowed: its thread waits in poll(2), reads
// and replies by plain calls, and all I/O goes through the slow goroutines,
// which block.

func (e *engine) waitPoll(n uint32, most time.Duration) error {
	e.poll = [2]unix.PollFd{{Fd: int32(e.s.fd), Events: unix.POLLIN}, {Fd: int32(e.waker.FD()), Events: unix.POLLIN}}
	if e.end != nil || !e.canRead() {
		e.poll[0].Fd = -1 // ignored
	}
	timeout := -1
	switch {
	case n == 0:
		timeout = 0
	case most > 0:
		timeout = int((most + time.Millisecond - 1) / time.Millisecond)
	}
	_, err := unix.Poll(e.poll[:], timeout)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("poll /dev/fuse: %w", err)
	}
	return nil
}

func (e *engine) collectPoll() {
	e.heard = e.poll[0].Revents != 0 // errors too: the read tells which
	if e.poll[1].Revents != 0 {
		e.waker.Drain()
		e.waker.Seen()
	}
}

func (e *engine) writeReply(msg []byte) {
	for {
		_, err := unix.Write(e.s.fd, msg)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err == nil, errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV):
		default:
			e.ended(fmt.Errorf("write reply to /dev/fuse: %w", err))
		}
		return
	}
}
