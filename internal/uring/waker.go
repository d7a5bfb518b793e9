package uring

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Waker wakes the thread of a ring from other goroutines. A wake-up costs a
// system call only when the thread sleeps.
type Waker struct {
	fd    int
	buf   []byte // 8 bytes of mapped memory for the pending read
	state atomic.Uint32
}

const (
	awake uint32 = iota
	asleep
	woken
)

// NewWaker makes a waker whose counter is read into buf, 8 bytes of [Map].
func NewWaker(buf []byte) (*Waker, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	return &Waker{fd: fd, buf: buf[:8]}, nil
}

// Close closes the waker's descriptor; nobody may wake any more.
func (w *Waker) Close() error { return unix.Close(w.fd) }

// FD is for those who poll it instead of using Arm; they call Drain when it is
// readable.
func (w *Waker) FD() int { return w.fd }

// Drain makes the descriptor unreadable until the next wake-up.
func (w *Waker) Drain() { _, _ = unix.Read(w.fd, w.buf) }

// Arm queues the operation that completes on a wake-up. Once per wake-up.
func (w *Waker) Arm(r *Ring, tag uint64) { r.Read(FD(w.fd), w.buf, NoOffset, tag) }

// Sleep says that the ring's thread is about to wait. What others have left
// for it must be looked at once more after this and before the wait.
func (w *Waker) Sleep() { w.state.CompareAndSwap(awake, asleep) }

// Awake says that the thread no longer waits.
func (w *Waker) Awake() { w.state.CompareAndSwap(asleep, awake) }

// Seen says that the armed operation has completed.
func (w *Waker) Seen() { w.state.Store(awake) }

// Wake makes the armed operation complete if the thread sleeps.
func (w *Waker) Wake() {
	if !w.state.CompareAndSwap(asleep, woken) {
		return
	}
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	// Fails only when the counter is full, and then the thread wakes anyway.
	_, _ = unix.Write(w.fd, one[:])
}
