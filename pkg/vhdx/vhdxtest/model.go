package vhdxtest

import (
	"fmt"
	"maps"
	"slices"
	"sync"
)

// Model is a virtual disk as its guest may expect it: for each sector what it
// reads now, and what it may read after a power cut. Writes to one sector must
// not overlap in time; everything else may.
type Model struct {
	world uint64

	mu     sync.Mutex
	size   []sizeVersion // like the versions of a sector
	gen    generation
	clock  uint64 // counts events
	groups map[int64]*group
	order  []int64            // keys of groups, sorted; nil: to be made
	loose  map[int64]*history // sectors with more than one version
}

// group holds the sectors that lie side by side; nil: never written.
type group [groupSectors]*history

const groupSectors = 128

// history of a sector: versions[0] is what is known to be on the medium, the
// others may have replaced it, in their order.
type history struct {
	versions []version
	room     [2]version // for versions, to begin with
}

func newHistory(v version) *history {
	h := &history{}
	h.versions = append(h.room[:0], v)
	return h
}

type version struct {
	gen    generation
	done   uint64 // clock when the write returned; 0: in flight
	failed bool   // the write answered an error: it may or may not be there
}

type sizeVersion struct {
	size int64
	version
}

// NewModel returns a disk that reads zero. World tells its bytes from those of
// other models.
func NewModel(world uint64, size int64) *Model {
	return &Model{
		world:  world,
		size:   []sizeVersion{{size: size, version: version{done: 1}}},
		clock:  1,
		groups: map[int64]*group{},
		loose:  map[int64]*history{},
	}
}

// Change is a write or resize under way.
type Change struct {
	// Data is what to write; nil for zeros.
	Data []byte

	m         *Model
	gen       generation
	off, n    int64
	resize    bool
	histories []*history
}

// Write begins a write. The caller carries it out and says Done.
func (m *Model) Write(off, n int64) *Change {
	c := m.begin(off, n, false)
	c.Data = make([]byte, n)
	for i := int64(0); i < n; i += SectorSize {
		tag{m.world, uint64((off + i) / SectorSize), c.gen}.fill(c.Data[i:])
	}
	return c
}

// Zero begins a change that makes a range read zero.
func (m *Model) Zero(off, n int64) *Change { return m.begin(off, n, true) }

func (m *Model) begin(off, n int64, zero bool) *Change {
	if off%SectorSize != 0 || n%SectorSize != 0 {
		panic(fmt.Sprintf("model: [%#x, +%#x) is not in sectors", off, n))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clock++
	c := &Change{m: m, off: off, n: n}
	if !zero {
		m.gen++
		c.gen = m.gen
	}
	for s := off / SectorSize; s < (off+n)/SectorSize; s++ {
		h := m.history(s)
		h.versions = append(h.versions, version{gen: c.gen})
		m.loose[s] = h
		c.histories = append(c.histories, h)
	}
	return c
}

// history returns that of a sector which is about to be written.
func (m *Model) history(s int64) *history {
	g := m.groups[s/groupSectors]
	if g == nil {
		g = new(group)
		m.groups[s/groupSectors] = g
		m.order = nil
	}
	if g[s%groupSectors] == nil {
		g[s%groupSectors] = newHistory(version{done: 1})
	}
	return g[s%groupSectors]
}

// Resize begins a change of the size, which is durable once it is done. What
// a smaller size cuts off reads zero from then on.
func (m *Model) Resize(size int64) *Change {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clock++
	m.size = append(m.size, sizeVersion{size: size})
	c := &Change{m: m, resize: true}
	for key, g := range m.groups {
		for i, h := range g {
			if s := key*groupSectors + int64(i); h != nil && s*SectorSize >= size {
				h.versions = append(h.versions, version{})
				m.loose[s] = h
				c.histories = append(c.histories, h)
			}
		}
	}
	return c
}

// Done says how the change ended. With an error it may or may not have
// happened, each sector on its own.
func (c *Change) Done(err error) {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	c.m.clock++
	if last := len(c.m.size) - 1; c.resize {
		c.m.size[last].finish(c.m.clock, err)
		if err == nil {
			c.m.size = c.m.size[last:]
		}
	}
	for _, h := range c.histories {
		last := len(h.versions) - 1
		h.versions[last].finish(c.m.clock, err)
		if c.resize && err == nil {
			h.versions = slices.Delete(h.versions, 0, last)
		}
	}
}

func (v *version) finish(clock uint64, err error) {
	v.done, v.failed = clock, err != nil
}

// Flush begins a flush; the caller calls what it returns with the outcome.
func (m *Model) Flush() func(error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clock++
	began := m.clock
	return func(err error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.clock++
		if err == nil {
			m.settle(began)
		}
	}
}

// settle drops what a flush that began then made impossible.
func (m *Model) settle(began uint64) {
	for s, h := range m.loose {
		h.versions = slices.Delete(h.versions, 0, lastDone(h.versions, began))
		if len(h.versions) == 1 {
			delete(m.loose, s)
		}
	}
}

// lastDone returns the index of the last version that surely was there then.
func lastDone(versions []version, then uint64) int {
	for i := len(versions) - 1; i > 0; i-- {
		if v := versions[i]; v.done != 0 && v.done <= then && !v.failed {
			return i
		}
	}
	return 0
}

// Version changes whenever an answer of the model may change.
func (m *Model) Version() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.clock
}

// Size returns the size a guest sees now.
func (m *Model) Size() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := len(m.size) - 1; i > 0; i-- {
		if m.size[i].done != 0 && !m.size[i].failed {
			return m.size[i].size
		}
	}
	return m.size[0].size
}

// Extent is a range of the virtual disk.
type Extent struct{ Off, N int64 }

// Touched returns the ranges that were ever written, none longer than limit.
func (m *Model) Touched(limit int64) []Extent {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.order == nil {
		m.order = slices.Sorted(maps.Keys(m.groups))
	}
	var all []Extent
	for _, key := range m.order {
		for i, h := range m.groups[key] {
			if h == nil {
				continue
			}
			off := (key*groupSectors + int64(i)) * SectorSize
			if last := len(all) - 1; last >= 0 && all[last].Off+all[last].N == off && all[last].N < limit {
				all[last].N += SectorSize
			} else {
				all = append(all, Extent{off, SectorSize})
			}
		}
	}
	return all
}
