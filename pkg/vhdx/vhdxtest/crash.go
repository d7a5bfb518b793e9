package vhdxtest

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// Snapshot is a file between two operations. It is immutable and may be used
// by several goroutines.
type Snapshot struct {
	name string
	step int
	base *pages // never written
	ops  []op
	open []int // indices of the operations that may or may not be on the medium
}

// Snapshot returns what the medium is in now.
func (f *File) Snapshot() *Snapshot {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.snapshot()
}

func (f *File) snapshot() *Snapshot {
	if f.frozen == nil {
		f.frozen = f.base.clone()
	}
	s := &Snapshot{name: f.name, step: f.step, base: f.frozen, ops: make([]op, len(f.ops))}
	for i, o := range f.ops {
		s.ops[i] = *o
		if o.state != durable {
			s.open = append(s.open, i)
		}
	}
	return s
}

// Step is the number of the last operation.
func (s *Snapshot) Step() int { return s.step }

// WritesAbove reports whether the last operation wrote data at off or above.
func (s *Snapshot) WritesAbove(off int64) bool {
	last := len(s.ops) - 1
	return last >= 0 && s.ops[last].kind == Write && s.ops[last].state == pending && s.ops[last].off >= off
}

// Undecided returns how many operations may or may not be on the medium.
func (s *Snapshot) Undecided() int { return len(s.open) }

// Killed returns the file as another process of the same boot finds it when
// the one that used it is killed here: everything reads as it did, and what
// was not durable is so no more than before.
func (s *Snapshot) Killed() *File { return s.killed(s.ops) }

// KilledInside is Killed for a process that was killed inside its last
// operation, of which the file got nothing or, of a write, the sectors of the first half.
func (s *Snapshot) KilledInside(half bool) *File {
	if len(s.ops) == 0 || s.ops[len(s.ops)-1].state != pending {
		return s.Killed() // it was a sync
	}
	before := s.ops[:len(s.ops)-1]
	last := s.ops[len(before)]
	if !half || last.kind != Write {
		return s.killed(before)
	}
	last.n = (last.off+last.n/2)/SectorSize*SectorSize - last.off
	if last.n <= 0 {
		return s.killed(before)
	}
	last.data = last.data[:last.n]
	return s.killed(append(before[:len(before):len(before)], last))
}

func (s *Snapshot) killed(ops []op) *File {
	f := &File{name: s.name, now: s.base.share(), base: s.base.share()}
	for _, o := range ops {
		o.returned = true
		o.apply(f.now)
		f.ops = append(f.ops, &o)
	}
	return f
}

// Plan decides what of a snapshot's undecided operations a power cut leaves. It
// is good for one Image.
type Plan struct {
	Name string
	// Unit is the size of a sector of the medium, 512 or 4096.
	Unit int64
	// data decides for the sector at off of operation i, size for its change
	// of the size.
	data func(i int, off int64) bool
	size func(i int) bool
}

// Image returns the medium that p leaves of s.
func (s *Snapshot) Image(p Plan) *File {
	m := s.base.share()
	for i := range s.ops {
		o := &s.ops[i]
		if o.state == durable {
			o.apply(m)
			continue
		}
		s.leave(m, i, p)
	}
	m.truncate(m.size) // data beyond the size is lost
	return fileOf(s.name, m)
}

// leave puts on m what p keeps of operation i.
func (s *Snapshot) leave(m *pages, i int, p Plan) {
	o := &s.ops[i]
	if o.kind == Write || o.kind == Punch || o.kind == Zero {
		for from := o.off; from < o.off+o.n; {
			to := min(o.off+o.n, from-from%p.Unit+p.Unit)
			if p.data(i, from) {
				if o.kind == Write {
					m.writeAt(o.data[from-o.off:to-o.off], from)
				} else {
					m.zero(from, to-from)
				}
			}
			from = to
		}
	}
	if !o.resizes() || !p.size(i) {
		return
	}
	if size := o.resize(m.size); size < m.size {
		m.truncate(size)
	} else {
		m.size = size
	}
}

// A strategy makes a plan for a snapshot from chance.
type strategy struct {
	name string
	plan func(s *Snapshot, r *rand.Rand) Plan
}

// Plan gives each of the first once, a sector strategy, and then the others in turn.
var (
	fixedStrategies = []strategy{
		{"none", ops(func(*Snapshot, *rand.Rand) func(int) bool { return func(int) bool { return false } })},
		{"all", ops(func(*Snapshot, *rand.Rand) func(int) bool { return func(int) bool { return true } })},
		{"last", ops(func(s *Snapshot, _ *rand.Rand) func(int) bool {
			last := s.open[len(s.open)-1]
			return func(i int) bool { return i == last }
		})},
	}
	sectorStrategies = []strategy{{"sectors512", sectors(512)}, {"sectors4096", sectors(pageSize)}}
	turnStrategies   = []strategy{
		sectorStrategies[0],
		sectorStrategies[1],
		{"subset", ops(func(_ *Snapshot, r *rand.Rand) func(int) bool {
			p := likelihood(r)
			return func(int) bool { return r.Float64() < p }
		})},
		{"but-one", ops(func(s *Snapshot, r *rand.Rand) func(int) bool {
			one := s.pick(r)
			return func(i int) bool { return i != one }
		})},
		{"prefix", ops(func(s *Snapshot, r *rand.Rand) func(int) bool {
			end := s.pick(r)
			return func(i int) bool { return i < end }
		})},
		{"far", area(false)},
		{"one", ops(func(s *Snapshot, r *rand.Rand) func(int) bool {
			one := s.pick(r)
			return func(i int) bool { return i == one }
		})},
		{"near", area(true)},
		{"suffix", ops(func(s *Snapshot, r *rand.Rand) func(int) bool {
			begin := s.pick(r)
			return func(i int) bool { return i >= begin }
		})},
		{"but-last", ops(func(s *Snapshot, _ *rand.Rand) func(int) bool {
			last := s.open[len(s.open)-1]
			return func(i int) bool { return i != last }
		})},
		{"data-without-sizes", func(*Snapshot, *rand.Rand) Plan {
			return Plan{Unit: pageSize, data: func(int, int64) bool { return true }, size: func(int) bool { return false }}
		}},
		{"sizes-without-data", func(*Snapshot, *rand.Rand) Plan {
			return Plan{Unit: pageSize, data: func(int, int64) bool { return false }, size: func(int) bool { return true }}
		}},
	}
)

// Plan returns plan i of a snapshot: 0 to 3 are none, all, the last operation
// alone, and torn ones; then follow the others, at each step beginning with
// another one. The same seed, snapshot and i give the same plan.
func (s *Snapshot) Plan(seed uint64, i int) Plan {
	st := fixedStrategies[0]
	switch {
	case len(s.open) == 0: // one state only
	case i < len(fixedStrategies):
		st = fixedStrategies[i]
	case i == len(fixedStrategies):
		st = sectorStrategies[s.step%2]
	default:
		st = turnStrategies[(i+s.step)%len(turnStrategies)]
	}
	r := rand.New(rand.NewPCG(mix(seed^mix(uint64(s.step))), uint64(i)))
	p := st.plan(s, r)
	p.Name = fmt.Sprintf("%s(%d/%d undecided)", st.name, i, len(s.open))
	return p
}

// pick chooses an undecided operation.
func (s *Snapshot) pick(r *rand.Rand) int { return s.open[r.IntN(len(s.open))] }

// likelihood chooses how likely something is to be kept.
func likelihood(r *rand.Rand) float64 { return []float64{0.1, 0.5, 0.5, 0.9}[r.IntN(4)] }

// ops is a strategy that keeps or loses whole operations.
func ops(choose func(*Snapshot, *rand.Rand) func(int) bool) func(*Snapshot, *rand.Rand) Plan {
	return func(s *Snapshot, r *rand.Rand) Plan {
		keep := choose(s, r)
		kept := make(map[int]bool, len(s.open))
		for _, i := range s.open {
			kept[i] = keep(i)
		}
		return Plan{
			Unit: pageSize,
			data: func(i int, _ int64) bool { return kept[i] },
			size: func(i int) bool { return kept[i] },
		}
	}
}

// sectors is a strategy that decides for each sector.
func sectors(unit int64) func(*Snapshot, *rand.Rand) Plan {
	return func(_ *Snapshot, r *rand.Rand) Plan {
		p, ps := likelihood(r), likelihood(r)
		return Plan{
			Unit: unit,
			data: func(int, int64) bool { return r.Float64() < p },
			size: func(int) bool { return r.Float64() < ps },
		}
	}
}

// area is a strategy that keeps what lies in the megabyte of one operation, or
// all but that; sizes are kept or lost at large.
func area(near bool) func(*Snapshot, *rand.Rand) Plan {
	return func(s *Snapshot, r *rand.Rand) Plan {
		mib := s.ops[s.pick(r)].off / chunkSize
		size := r.IntN(2) == 0
		return Plan{
			Unit: pageSize,
			data: func(_ int, off int64) bool { return (off/chunkSize == mib) == near },
			size: func(int) bool { return size },
		}
	}
}

// String lists the operations that the medium may lack, oldest first.
func (s *Snapshot) String() string {
	names := []string{pending: "pending", limbo: "lost track of", durable: "durable"}
	var b strings.Builder
	for i := range s.ops {
		o := &s.ops[i]
		at, n := o.off, o.n
		if o.kind == Truncate {
			at, n = o.size, 0
		}
		fmt.Fprintf(&b, "  %3d %-8v %#x +%#x %s\n", i, o.kind, at, n, names[o.state])
	}
	return b.String()
}
