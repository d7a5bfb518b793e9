package fuseloop

import (
	"time"

	w "github.com/csi-vhdx/csi-driver-vhdx/internal/fusewire"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
)

// A limit delays reads, writes, zeroings and discards, all in one queue: whoever
// came first begins first. What waits there holds up what comes after it, by
// and by in the kernel too, which is what a limit is for.

// delays keeps the new request i back if a limit says so.
func (e *engine) delays(i int32, r *request) bool {
	l := e.s.limits.Load()
	if l == nil || r.op == w.OpFsync {
		return false
	}
	h := &e.hold
	now := h.clock()
	e.follow(l, now)
	if len(h.delayed) == 0 && h.shaper.Take(r.charged(), now) {
		return false
	}
	r.state = stateDelayed
	h.delayed = append(h.delayed, i)
	return true
}

// charged is how many bytes of it a limit on bytes counts.
func (r *request) charged() int64 {
	if r.op == w.OpFallocate {
		return 0
	}
	return r.n
}

func (e *engine) follow(l *blockdev.Limits, now time.Duration) {
	if h := &e.hold; l != h.limits {
		h.limits = l
		h.shaper.Set(*l, now)
	}
}

// letBegin begins the delayed requests whose time has come.
func (e *engine) letBegin(now time.Duration) {
	h := &e.hold
	if len(h.delayed) == 0 {
		return
	}
	l := e.s.limits.Load()
	if l != nil {
		e.follow(l, now)
	}
	n := 0
	for ; n < len(h.delayed); n++ {
		i := h.delayed[n]
		if l != nil && !h.shaper.Take(e.reqs[i].charged(), now) {
			break
		}
		e.begin(i)
	}
	h.delayed = h.delayed[:copy(h.delayed, h.delayed[n:])]
}

var _ blockdev.Limiter = (*Device)(nil)

// SetLimits changes the limits for what begins from now on.
func (d *Device) SetLimits(l blockdev.Limits) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.srv != nil {
		d.srv.s.setLimits(l)
		d.srv.waker.Wake()
	}
}

func (s *session) setLimits(l blockdev.Limits) {
	if l == (blockdev.Limits{}) {
		s.limits.Store(nil)
		return
	}
	s.limits.Store(&l)
}
