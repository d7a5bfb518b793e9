package vhdx

import (
	"math/bits"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// spaceMap is the use of a file in MiB, one bit each, in leaves that exist
// only where something lies: a hostile file of 256 TiB with a small BAT costs
// little, and the most that any file can cost is 32 MiB. Leaves that one range
// has filled are one leaf: a file in the order of its disk costs next to nothing.
type spaceMap struct {
	leaves []*spaceLeaf // as far as something was marked
	full   *spaceLeaf   // shared by all that are full at once; nil: there are none
	end    int64        // where the last thing that was marked ends, bytes
}

// spaceLeaf covers 32 GiB.
type spaceLeaf [leafWords]uint64

const (
	leafWords = 512
	leafMiB   = leafWords * 64
)

// leaf returns the leaf of a MiB; nil where nothing lies.
func (m *spaceMap) leaf(i int64) *spaceLeaf {
	if i/leafMiB >= int64(len(m.leaves)) {
		return nil
	}
	return m.leaves[i/leafMiB]
}

// put sets a leaf.
func (m *spaceMap) put(i int64, leaf *spaceLeaf) {
	if need := i/leafMiB + 1 - int64(len(m.leaves)); need > 0 {
		m.leaves = append(m.leaves, make([]*spaceLeaf, need)...)
	}
	m.leaves[i/leafMiB] = leaf
}

// fullLeaf is the one that is never written.
func (m *spaceMap) fullLeaf() *spaceLeaf {
	if m.full == nil {
		m.full = new(spaceLeaf)
		for i := range m.full {
			m.full[i] = ^uint64(0)
		}
	}
	return m.full
}

// wordMask returns the bits of [i, last) in i's word, and where the next word begins.
func wordMask(i, last int64) (mask uint64, next int64) {
	next = min(last, i/64*64+64)
	return ^uint64(0) >> (64 - (next - i)) << (i % 64), next
}

// mark claims the MiB that a range touches, and returns the first of them, in
// bytes, that something else has claimed already; -1 if there is none. All of
// the range is claimed in any case. The range lies below maxFileSize.
func (m *spaceMap) mark(off, length int64) int64 {
	clash := int64(-1)
	last := (off + length + ondisk.MiB - 1) / ondisk.MiB
	for i := off / ondisk.MiB; i < last; {
		leaf := m.leaf(i)
		if leaf == nil {
			if i%leafMiB == 0 && last-i >= leafMiB {
				m.put(i, m.fullLeaf())
				i += leafMiB
				continue
			}
			leaf = new(spaceLeaf)
			m.put(i, leaf)
		}
		mask, next := wordMask(i, last)
		word := &leaf[i%leafMiB/64]
		if both := *word & mask; both != 0 && clash < 0 {
			clash = (i/64*64 + int64(bits.TrailingZeros64(both))) * ondisk.MiB
		}
		if *word&mask != mask { // never of the full leaf
			*word |= mask
		}
		i = next
	}
	m.end = max(m.end, off+length)
	return clash
}

// take is mark for a range inside one word of the map, if that is free.
func (m *spaceMap) take(off, length int64) bool {
	i, n := uint64(off)/ondisk.MiB, uint64(length)/ondisk.MiB
	leaf := m.leaf(int64(i))
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

// clear gives a range, in whole MiB, up. The end stays where it is.
func (m *spaceMap) clear(off, length int64) {
	last := (off + length) / ondisk.MiB
	for i := off / ondisk.MiB; i < last; {
		mask, next := wordMask(i, last)
		leaf := m.leaf(i)
		if leaf != nil && leaf == m.full {
			own := *leaf
			leaf = &own
			m.put(i, leaf)
		}
		if leaf != nil {
			leaf[i%leafMiB/64] &^= mask
		}
		i = next
	}
}

// claimed returns the first MiB of a range, in bytes, that is claimed; -1 if none is.
func (m *spaceMap) claimed(off, length int64) int64 {
	last := (off + length + ondisk.MiB - 1) / ondisk.MiB
	for i := off / ondisk.MiB; i < last; {
		leaf := m.leaf(i)
		if leaf == nil {
			i += leafMiB - i%leafMiB
			continue
		}
		mask, next := wordMask(i, last)
		if both := leaf[i%leafMiB/64] & mask; both != 0 {
			return (i/64*64 + int64(bits.TrailingZeros64(both))) * ondisk.MiB
		}
		i = next
	}
	return -1
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
		leaf := m.leaf(i)
		word, step := uint64(0), leafMiB-i%leafMiB
		switch {
		case leaf == nil:
		case leaf == m.full:
			word = ^uint64(0)
		default:
			word, step = leaf[i%leafMiB/64], 64
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
