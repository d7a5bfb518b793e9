package fuseloop

import (
	"sync"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev/limit"
)

// Requests that are held although nothing of them is under way: changes for
// which there is no space (paused, pause.go), and what a limit does not let
// begin yet (delayed, delay.go). Both keep their places among the engine's
// requests, and both are left to the next server when this one ends.

// held is the engine's thread's own, but for shown and the inside of the alarm.
type held struct {
	paused  []int32       // by arrival
	probe   int32         // the paused request that is being tried, or none
	retry   time.Duration // when the next one is
	waiting int           // requests that have been paused and are not answered
	shown   shownPause

	delayed []int32 // by arrival
	limits  *blockdev.Limits
	shaper  limit.Shaper

	origin time.Time // of the engine's clock
	alarm  alarm
}

func (h *held) make(depth int, wake func()) {
	h.paused, h.delayed = make([]int32, 0, depth), make([]int32, 0, depth)
	h.probe, h.origin = none, time.Now()
	h.alarm.make(wake)
}

// any reports whether a request is held.
func (h *held) any() bool { return len(h.paused)+len(h.delayed) > 0 }

func (h *held) clock() time.Duration { return time.Since(h.origin) }

// due is when something held can go on; 0: nothing will by the clock.
func (h *held) due(now time.Duration) (at time.Duration) {
	if len(h.paused) > 0 && h.probe == none {
		at = h.retry
	}
	if len(h.delayed) > 0 {
		if d := now + h.shaper.Wait(now); at == 0 || d < at {
			at = d
		}
	}
	return at
}

// tend lets go on what is due, and sees to the next wake-up.
func (e *engine) tend() {
	h := &e.hold
	now := h.clock()
	if now >= h.alarm.at {
		h.alarm.at = 0
	}
	e.letBegin(now)
	if len(h.paused) > 0 && h.probe == none && now >= h.retry {
		e.tryPaused(now)
	}
	if at := h.due(now); at > 0 {
		h.alarm.set(at, now)
	}
}

// isDue reports whether tend has something to do. It is asked after
// waker.Sleep: an alarm before that has woken nobody.
func (e *engine) isDue() bool {
	if !e.hold.any() {
		return false
	}
	now := e.hold.clock()
	at := e.hold.due(now)
	return at > 0 && at <= now
}

// leave forgets the requests held. They have not been answered: if the device
// has another server, the kernel sends them again.
func (e *engine) leave() {
	h := &e.hold
	for _, i := range h.paused {
		e.forget(i)
	}
	for _, i := range h.delayed {
		e.free(i)
	}
	h.paused, h.delayed = h.paused[:0], h.delayed[:0]
}

// alarm wakes the engine at a time.
type alarm struct {
	mu    sync.Mutex // over a wake-up: none may come once the waker is closed
	ended bool
	timer *time.Timer
	at    time.Duration // what it is set to; 0: nothing
}

func (a *alarm) make(wake func()) {
	a.timer = time.AfterFunc(time.Hour, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if !a.ended {
			wake()
		}
	})
	a.timer.Stop()
}

func (a *alarm) set(at, now time.Duration) {
	if a.at != at {
		a.at = at
		a.timer.Reset(max(at-now, 0))
	}
}

func (a *alarm) close() {
	if a.timer == nil {
		return
	}
	a.timer.Stop()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ended = true
}
