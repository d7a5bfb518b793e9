package fuseloop

import (
	"context"
	"fmt"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/uring"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
)

// A change for which there is no space waits until there is some. It waits as a
// request like any other, so that it can be left to the next server, and for the
// order of changes it is under way. Only the oldest one is tried again and
// again; when there is space for it the others follow in the order of their
// arrival. Reads and flushes pass by, until the paused requests have taken all
// places: those of the engine, of the kernel's queue, or of the loop device.

const (
	retryEvery = 250 * time.Millisecond
	// spillAt is how few big buffers are left when paused writes move to memory
	// of their own, so that other requests can still be read.
	spillAt = bigBuffers / 2
	// spillMost bounds that memory over all devices of an attacher. Beyond it
	// paused writes keep their big buffers, and behind 32 of them nothing is read.
	spillMost = 64 << 20
)

// shownPause is what others may see of the pause.
type shownPause struct {
	since   atomic.Int64 // Unix time, ns; 0: no pause
	errno   atomic.Uint32
	waiting atomic.Int32
}

func noSpace(errno syscall.Errno) bool { return errno == unix.ENOSPC || errno == unix.EDQUOT }

// pauses holds the request i, which has failed for want of space, unless it
// has to fail.
func (e *engine) pauses(i int32) bool {
	r, h := &e.reqs[i], &e.hold
	if h.probe == i {
		h.probe = none
	}
	if !e.s.pause.Load() || !r.changes() || !noSpace(r.errno) {
		e.unpaused(i)
		return false
	}
	now := h.clock()
	if !r.paused {
		r.paused, r.pausedAt = true, now
		h.waiting++
	}
	r.state = statePaused
	at := len(h.paused)
	for at > 0 && e.reqs[h.paused[at-1]].seq > r.seq {
		at--
	}
	h.paused = append(h.paused, none)
	copy(h.paused[at+1:], h.paused[at:])
	h.paused[at] = i
	h.retry = now + retryEvery
	if r.big != none && len(e.freeBigs) < spillAt {
		e.spill(r)
	}
	e.showPause(r.errno)
	return true
}

// unpaused notes that a request waits for space no more, if it has at all. The
// first to get space shows that there is some.
func (e *engine) unpaused(i int32) {
	r, h := &e.reqs[i], &e.hold
	if !r.paused {
		return
	}
	r.paused = false
	h.waiting--
	e.showPause(unix.ENOSPC)
	if !noSpace(r.errno) {
		e.resumePaused()
	}
}

func (e *engine) showPause(errno syscall.Errno) {
	h := &e.hold
	switch h.shown.waiting.Store(int32(h.waiting)); {
	case h.waiting == 0:
		h.shown.since.Store(0)
	case h.shown.since.Load() == 0:
		h.shown.errno.Store(uint32(errno))
		h.shown.since.Store(time.Now().UnixNano())
	}
}

// tryPaused fails what has waited too long, and tries the oldest of the others:
// by a slow goroutine, for asking for space may wait for the storage.
func (e *engine) tryPaused(now time.Duration) {
	h := &e.hold
	for len(h.paused) > 0 && e.s.pausedEnough(now-e.reqs[h.paused[0]].pausedAt) {
		i := e.nextPaused()
		e.unpaused(i)
		e.finish(i)
	}
	if len(h.paused) == 0 {
		return
	}
	i := e.nextPaused()
	h.probe = i
	r := &e.reqs[i]
	r.errno, r.probe, r.state = 0, true, stateSlow
	e.slow.submit(i, r.op)
}

func (e *engine) nextPaused() int32 {
	h := &e.hold
	i := h.paused[0]
	h.paused = h.paused[:copy(h.paused, h.paused[1:])]
	return i
}

// resumePaused begins all paused changes again. Those for which there is no
// space after all come back.
func (e *engine) resumePaused() {
	h := &e.hold
	for _, i := range h.paused {
		r := &e.reqs[i]
		r.errno, r.probe = 0, false
		if r.spilled == nil {
			e.launch(i)
			continue
		}
		r.state = stateSlow // the ring does not know its memory
		e.slow.submit(i, r.op)
	}
	h.paused = h.paused[:0]
}

// forget drops a paused request without an answer.
func (e *engine) forget(i int32) {
	r := &e.reqs[i]
	r.paused = false
	e.hold.waiting--
	e.showPause(unix.ENOSPC)
	if r.narrow {
		e.narrow--
	}
	e.free(i)
}

// spill moves a request from its big buffer to memory of its own, if there is some.
func (e *engine) spill(r *request) {
	n := dataAt + (r.n+page-1)&^(page-1)
	mem := e.s.spills.take(n)
	if mem == nil {
		return
	}
	copy(mem[dataAt:], r.data())
	e.freeBigs = append(e.freeBigs, r.big)
	r.buf, r.big, r.spilled = mem, none, mem
}

// spills counts the memory that paused writes of all devices have.
type spills struct{ used atomic.Int64 }

func (s *spills) take(n int64) []byte {
	if s.used.Add(n) <= spillMost {
		if mem, err := uring.Map(int(n)); err == nil {
			return mem
		}
	}
	s.used.Add(-n)
	return nil
}

func (s *spills) give(mem []byte) {
	s.used.Add(-int64(len(mem)))
	_ = uring.Unmap(mem)
}

var _ blockdev.Pauser = (*Device)(nil)

// Paused says whether writes wait for space.
func (d *Device) Paused() blockdev.Pause {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.srv == nil {
		return blockdev.Pause{}
	}
	shown := &d.srv.hold.shown
	since := shown.since.Load()
	if since == 0 {
		return blockdev.Pause{}
	}
	return blockdev.Pause{
		Since: time.Unix(0, since), Reason: syscall.Errno(shown.errno.Load()), Waiting: int(shown.waiting.Load()),
	}
}

// SetPause changes what becomes of changes without space.
func (d *Device) SetPause(on bool, limit time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.srv != nil {
		d.srv.s.setPause(on, limit)
	}
}

func (s *session) setPause(on bool, limit time.Duration) {
	s.pause.Store(on)
	s.pauseLimit.Store(int64(limit))
}

// pausedEnough reports whether a change that has waited for so long has to fail.
func (s *session) pausedEnough(d time.Duration) bool {
	limit := time.Duration(s.pauseLimit.Load())
	return !s.pause.Load() || limit > 0 && d >= limit
}

// unlessPaused gives a context that ends, with the reason, when writes begin
// to wait for space: who waits for all of them to be written would wait as long.
func (d *Device) unlessPaused(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		tick := time.NewTicker(retryEvery)
		defer tick.Stop()
		for ctx.Err() == nil {
			if err := d.pausedErr(); err != nil {
				cancel(err)
				return
			}
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
		}
	}()
	return ctx, func() { cancel(nil) }
}

func (d *Device) pausedErr() error {
	p := d.Paused()
	if !p.On() {
		return nil
	}
	return fmt.Errorf("%w: %d requests, since %s: %w; make room on the share", blockdev.ErrPaused, p.Waiting, p.Since.UTC().Format(time.RFC3339), p.Reason)
}
