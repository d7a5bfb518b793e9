package vhdx

import "fmt"

// owners of the first few structures, to name what a block overlaps.
type owner struct {
	extent
	name string
}

const logName = "log"

// structures are what is not block space, by name.
type structures []owner

// add claims a structure's space, and tells which other one it overlaps.
func (s *structures) add(m *spaceMap, name string, off, length int64) error {
	m.mark(off, length)
	e := extent{off, length}
	for _, o := range *s {
		if o.off < e.end() && e.off < o.end() {
			*s = append(*s, owner{e, name})
			return fmt.Errorf("%#x bytes at %#x overlap the %s at %#x", length, off, o.name, o.off)
		}
	}
	*s = append(*s, owner{e, name})
	return nil
}

// holds reports whether a structure of a name lies in a range.
func (s structures) holds(name string, off, length int64) bool {
	for _, o := range s {
		if o.name == name && o.off < off+length && off < o.end() {
			return true
		}
	}
	return false
}

// at names the structure that lies in a range, but for the log, which moves; ""
// if none does.
func (s structures) at(off, length int64) string {
	for _, o := range s {
		if o.name != logName && o.off < off+length && off < o.end() {
			return o.name
		}
	}
	return ""
}
