package fuseloop

import w "github.com/csi-vhdx/csi-driver-vhdx/internal/fusewire"

// Order between changes of one aligned unit (I-FL-3). The image changes part
// of a unit by reading the unit, changing it and writing it back, under a lock
// of its own that the ring does not take. So a narrow change waits for every
// change of its units that is under way, and every later change of them waits
// for it. Changes that the guest itself sends at once may come in any order;
// what must not happen is that bytes beside them get lost.
//
// While there is no narrow change, which is always so where the alignment is
// the sector size, this costs one comparison per request.

func (r *request) changes() bool { return r.op == w.OpWrite || r.op == w.OpFallocate }

// mustWait reports whether the new request r waits for another one.
func (e *engine) mustWait(r *request) bool {
	if !r.changes() {
		return false
	}
	r.narrow = (r.off|r.n)&(e.s.align-1) != 0
	if r.narrow {
		e.narrow++
	} else if e.narrow == 0 {
		return false
	}
	return e.blocked(r)
}

// blocked reports whether a change of r's units is under way, or parked and
// older, and one of the two is narrow.
func (e *engine) blocked(r *request) bool {
	mask := ^(e.s.align - 1)
	from, to := r.off&mask, (r.off+r.n+e.s.align-1)&mask
	for i := range e.reqs {
		o := &e.reqs[i]
		if o == r || !o.changes() || !o.narrow && !r.narrow {
			continue
		}
		running := o.state == stateRing || o.state == stateSlow || o.state == statePaused
		waits := o.state == stateParked && o.seq < r.seq
		if (running || waits) && o.off&mask < to && from < (o.off+o.n+e.s.align-1)&mask {
			return true
		}
	}
	return false
}

// unpark launches what no longer has to wait, oldest first.
func (e *engine) unpark() {
	kept := e.parked[:0]
	for _, i := range e.parked {
		if e.blocked(&e.reqs[i]) {
			kept = append(kept, i)
			continue
		}
		e.launch(i)
	}
	e.parked = kept
}
