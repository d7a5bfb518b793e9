package supervisor

import (
	"encoding/binary"
	"sync/atomic"
	"time"
	"unsafe"
)

// Kind is how a worker's turn ended.
type Kind int

// The kinds. Kinds is how many there are.
const (
	Killed Kind = iota // from outside, or nobody knows how
	Failed             // by itself: an exit, a panic, an out-of-memory kill
	Hung               // it gave no sign of life and was killed for it
	Kinds
)

var kindNames = [Kinds]string{"killed", "failed", "hung"}

func (k Kind) String() string { return kindNames[k] }

// History is what a worker is told of those before it. The zero value: there
// was none.
type History struct {
	// Ends counts them, by how they ended.
	Ends [Kinds]uint64
	// Last is how the last one ended, Cause the same in words. At is the time
	// since boot (CLOCK_BOOTTIME) from which on it served nobody: when it ended,
	// or its last sign of life. 0: this is the first worker.
	Last  Kind
	Cause string
	At    time.Duration
}

// Restarts is how many workers there were before.
func (h History) Restarts() (n uint64) {
	for _, ends := range h.Ends {
		n += ends
	}
	return n
}

// Its place in a page, behind the marks, written before the worker starts:
//
//	0  8*3  ends   24  8  last   32  8  at, ns   40  4  length of cause   44  cause (192)
const (
	offHistory = offMarks + slots*cellSize
	maxCause   = 192

	historyLast  = 24
	historyAt    = 32
	historyCause = 40
)

func (p page) putHistory(h History) {
	b := p[offHistory:]
	for k, n := range h.Ends {
		binary.LittleEndian.PutUint64(b[8*k:], n)
	}
	binary.LittleEndian.PutUint64(b[historyLast:], uint64(h.Last))
	binary.LittleEndian.PutUint64(b[historyAt:], uint64(h.At))
	n := copy(b[historyCause+4:][:maxCause], h.Cause)
	binary.LittleEndian.PutUint32(b[historyCause:], uint32(n))
}

func (p page) history() History {
	b := p[offHistory:]
	var h History
	for k := range h.Ends {
		h.Ends[k] = binary.LittleEndian.Uint64(b[8*k:])
	}
	h.Last = Kind(min(binary.LittleEndian.Uint64(b[historyLast:]), uint64(Kinds-1)))
	h.At = time.Duration(binary.LittleEndian.Uint64(b[historyAt:]))
	n := min(binary.LittleEndian.Uint32(b[historyCause:]), maxCause)
	h.Cause = string(b[historyCause+4:][:n])
	return h
}

// History says what became of the workers before this one.
func (l *Link) History() History {
	if l == nil {
		return History{}
	}
	return l.past
}

// Tallies is how many counters a worker may leave to its successors.
const Tallies = 4

// offTallies is their place in a page: each 8 bytes, set to what the last worker
// left before the next one starts, which alone adds to them.
const offTallies = (offHistory + historyCause + 4 + maxCause + 7) &^ 7

func (p page) tally(i int) *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&p[offTallies+8*i]))
}

// Tally is a counter that goes on over the deaths of workers, from 0 to
// [Tallies]. Without a supervisor it begins with the process.
func (l *Link) Tally(i int) *atomic.Uint64 {
	if l == nil {
		return new(atomic.Uint64)
	}
	return l.page.tally(i)
}
