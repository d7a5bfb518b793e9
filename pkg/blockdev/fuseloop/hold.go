package fuseloop

import (
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev/limit"
)

// Requests that are held although nothing of them is under way: changes for
// which there is no space (paused, pause.go), and what a limit does not let
// begin yet (delayed, delay.go). Both keep their places among the engine's
// requests, and both are left to the next server when this one ends.

// held is the engine's thread's own, but for shown.
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
}

func (h *held) make(depth int) {
	h.paused, h.delayed = make([]int32, 0, depth), make([]int32, 0, depth)
	h.probe, h.origin = none, time.Now()
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

// patience is how long the engine may wait; 0: as long as it takes.
func (h *held) patience() time.Duration {
	if !h.any() {
		return 0
	}
	now := h.clock()
	if at := h.due(now); at > 0 {
		return max(at-now, 1)
	}
	return 0
}

// tend lets go on what is due.
func (e *engine) tend() {
	h := &e.hold
	now := h.clock()
	e.letBegin(now)
	if len(h.paused) > 0 && h.probe == none && now >= h.retry {
		e.tryPaused(now)
	}
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
