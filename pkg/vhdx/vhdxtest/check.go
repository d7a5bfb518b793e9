package vhdxtest

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// ErrForeign is what the model answers when it meets bytes that no write of
// the guest can explain.
var ErrForeign = errors.New("foreign bytes")

// Observed is what a reopened disk was seen to hold: the sectors that are not
// zero.
type Observed struct {
	Size int64
	gens map[int64]generation
}

// NewObserved begins an observation.
func NewObserved(size int64) *Observed {
	return &Observed{Size: size, gens: map[int64]generation{}}
}

// Difference returns a description of the first sector in which two
// observations differ, "" if there is none.
func (o *Observed) Difference(other *Observed) string {
	if o.Size != other.Size {
		return fmt.Sprintf("virtual size %#x or %#x", o.Size, other.Size)
	}
	for _, pair := range [][2]*Observed{{o, other}, {other, o}} {
		for _, s := range slices.Sorted(maps.Keys(pair[0].gens)) {
			if a, b := o.gens[s], other.gens[s]; a != b {
				return fmt.Sprintf("sector %#x: generation %d or %d", s, a, b)
			}
		}
	}
	return ""
}

// After returns the disk of a guest that finds seen after a power cut: all of
// it is on the medium.
func (m *Model) After(seen *Observed) *Model {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := NewModel(m.world, seen.Size)
	n.gen = m.gen
	for key, g := range m.groups {
		fresh := new(group)
		for i, h := range g {
			if h != nil {
				fresh[i] = newHistory(version{gen: seen.gens[key*groupSectors+int64(i)], done: 1})
			}
		}
		n.groups[key] = fresh
	}
	return n
}

// Restarted returns the disk of a guest that finds seen after only the process
// that served it died: a power cut may still undo what was not flushed.
func (m *Model) Restarted(seen *Observed) *Model {
	n := m.After(seen)
	m.mu.Lock()
	defer m.mu.Unlock()
	n.clock = m.clock
	for s, h := range m.loose {
		after := n.history(s)
		found := after.versions[0]
		found.done = n.clock
		after.versions = slices.Clone(h.versions)
		for i := range after.versions {
			after.versions[i].done, after.versions[i].failed = n.clock, true
		}
		after.versions = append(after.versions, found)
		n.loose[s] = after
	}
	sizes := slices.Clone(m.size)
	for i := range sizes {
		sizes[i].done, sizes[i].failed = n.clock, true
	}
	n.size = append(sizes, sizeVersion{seen.Size, version{done: n.clock}})
	return n
}

// CheckSize tells whether the disk may have this size after a power cut.
func (m *Model) CheckSize(size int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var may []string
	for _, v := range m.size {
		if v.size == size {
			return nil
		}
		may = append(may, fmt.Sprintf("%#x", v.size))
	}
	return fmt.Errorf("virtual size is %#x, not %s", size, strings.Join(may, " or "))
}

// CheckCut compares what was read at off after a power cut with what may be
// there, and notes it in seen (which may be nil).
func (m *Model) CheckCut(p []byte, off int64, seen *Observed) error {
	return m.check(p, off, seen, func(vs []version) []version { return vs })
}

// CheckLive compares what was read at off while the disk is in use, and notes
// it in seen (which may be nil).
func (m *Model) CheckLive(p []byte, off int64, seen *Observed) error {
	return m.check(p, off, seen, func(vs []version) []version { return vs[lastDone(vs, ^uint64(0)):] })
}

// CheckRead is CheckLive for a read that began when [Model.Version] was since,
// beside writes. There must have been no flush of the model since.
func (m *Model) CheckRead(p []byte, off int64, since uint64) error {
	return m.check(p, off, nil, func(vs []version) []version { return vs[lastDone(vs, since):] })
}

func (m *Model) check(p []byte, off int64, seen *Observed, may func([]version) []version) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := int64(0); i < int64(len(p)); {
		s := (off + i) / SectorSize
		g, first := m.groups[s/groupSectors], s%groupSectors
		n := min((groupSectors-first)*SectorSize, int64(len(p))-i)
		if g == nil && isZero(p[i:i+n]) {
			i += n
			continue
		}
		for end := i + n; i < end; i += SectorSize {
			versions := untouched
			if g != nil && g[s%groupSectors] != nil {
				versions = g[s%groupSectors].versions
			}
			if err := m.checkSector(p[i:i+SectorSize], s, may(versions), seen); err != nil {
				return err
			}
			s++
		}
	}
	return nil
}

// untouched is the history of a sector that was never written.
var untouched = []version{{done: 1}}

func (m *Model) checkSector(p []byte, s int64, may []version, seen *Observed) error {
	t, ok := tag{}, isZero(p)
	if !ok {
		t, ok = readTag(p)
		ok = ok && t.world == m.world && t.sector == uint64(s) && t.gen != 0
	}
	if ok && slices.ContainsFunc(may, func(v version) bool { return v.gen == t.gen }) {
		if seen != nil && t.gen != 0 {
			seen.gens[s] = t.gen
		}
		return nil
	}
	var want []string
	for _, v := range may {
		want = append(want, v.String())
	}
	err := fmt.Errorf("sector %#x (offset %#x) holds %s, may hold %s", s, s*SectorSize, describe(p), strings.Join(want, ", "))
	if !ok {
		return fmt.Errorf("%w: %w", ErrForeign, err)
	}
	return err
}

func (v version) String() string {
	name := fmt.Sprintf("generation %d", v.gen)
	if v.gen == 0 {
		name = "zeros"
	}
	switch {
	case v.done == 0:
		return name + " (in flight)"
	case v.failed:
		return name + " (failed)"
	}
	return name
}
