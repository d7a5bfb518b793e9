package vhdx

import (
	"fmt"
	"math/bits"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// spaceMap is the use of a file in MiB, one bit each, in leaves that exist
// only where something lies: a hostile file of 256 TiB with a small BAT costs
// little, and the most that any file can cost is 32 MiB.
type spaceMap struct {
	leaves []*spaceLeaf
	end    int64 // where the last thing that was marked ends, bytes
}

// spaceLeaf covers 32 GiB.
type spaceLeaf [leafWords]uint64

const (
	leafWords = 512
	leafMiB   = leafWords * 64
)

func newSpaceMap() *spaceMap {
	return &spaceMap{leaves: make([]*spaceLeaf, maxFileSize/ondisk.MiB/leafMiB)}
}

// mark claims the MiB that a range touches, and returns the first of them, in
// bytes, that something else has claimed already; -1 if there is none. All of
// the range is claimed in any case. The range lies below maxFileSize.
func (m *spaceMap) mark(off, length int64) int64 {
	clash := int64(-1)
	last := (off + length + ondisk.MiB - 1) / ondisk.MiB
	for i := off / ondisk.MiB; i < last; {
		leaf := m.leaves[i/leafMiB]
		if leaf == nil {
			leaf = new(spaceLeaf)
			m.leaves[i/leafMiB] = leaf
		}
		mask, next := wordMask(i, last)
		word := &leaf[i%leafMiB/64]
		if both := *word & mask; both != 0 && clash < 0 {
			clash = (i/64*64 + int64(bits.TrailingZeros64(both))) * ondisk.MiB
		}
		*word |= mask
		i = next
	}
	m.end = max(m.end, off+length)
	return clash
}

// take is mark for a range inside one word of the map, if that is free.
func (m *spaceMap) take(off, length int64) bool {
	i, n := uint64(off)/ondisk.MiB, uint64(length)/ondisk.MiB
	leaf := m.leaves[i/leafMiB]
	if leaf == nil || i%64+n > 64 {
		return false
	}
	word := &leaf[i%leafMiB/64]
	mask := ^uint64(0) >> (64 - n) << (i % 64)
	if *word&mask != 0 {
		return false
	}
	*word |= mask
	m.end = max(m.end, off+length)
	return true
}

// claimed reports whether any MiB of a range, in whole MiB, is claimed.
func (m *spaceMap) claimed(off, length int64) bool {
	last := (off + length) / ondisk.MiB
	for i := off / ondisk.MiB; i < last; {
		mask, next := wordMask(i, last)
		if leaf := m.leaves[i/leafMiB]; leaf != nil && leaf[i%leafMiB/64]&mask != 0 {
			return true
		}
		i = next
	}
	return false
}

// gaps calls visit with the unclaimed ranges below end, which is rounded up to
// whole MiB.
func (m *spaceMap) gaps(end int64, visit func(extent) error) error {
	mib := (end + ondisk.MiB - 1) / ondisk.MiB
	start := int64(-1)
	tell := func(i int64) error {
		if start < 0 {
			return nil
		}
		e := extent{start * ondisk.MiB, (i - start) * ondisk.MiB}
		start = -1
		return visit(e)
	}
	for i := int64(0); i < mib; {
		leaf := m.leaves[i/leafMiB]
		word, step := uint64(0), int64(64)
		if leaf == nil {
			step = leafMiB - i%leafMiB
		} else {
			word = leaf[i%leafMiB/64]
		}
		switch {
		case word == 0:
			if start < 0 {
				start = i
			}
		case word == ^uint64(0):
			if err := tell(i); err != nil {
				return err
			}
		default:
			for bit := range min(64, mib-i) {
				used := word>>bit&1 != 0
				if used {
					if err := tell(i + bit); err != nil {
						return err
					}
				} else if start < 0 {
					start = i + bit
				}
			}
		}
		i += step
	}
	return tell(mib)
}

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
