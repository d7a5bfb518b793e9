package vhdx

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// resolve says who claims one place with whom, after the walk has seen that
// somebody does. Who comes first in the table keeps the place, before all those
// that only remember one; a structure keeps it before any block, but the log,
// which moves.
func (b *batPass) resolve() error {
	if len(b.clashes) == 0 {
		return nil
	}
	b.clashes = mergeExtents(b.clashes)
	r := &resolver{batPass: b, blocks: map[int64]claimant{}, bitmaps: map[int64]claimant{}}
	if err := b.stream(r.pass(false)); err != nil {
		return err
	}
	if b.anchors {
		return b.stream(r.pass(true))
	}
	return nil
}

// mergeExtents sorts extents and joins those that touch.
func mergeExtents(all []extent) []extent {
	slices.SortFunc(all, func(a, b extent) int { return cmp.Compare(a.off, b.off) })
	merged := all[:1]
	for _, e := range all[1:] {
		if last := &merged[len(merged)-1]; e.off <= last.end() {
			last.length = max(last.end(), e.end()) - last.off
		} else {
			merged = append(merged, e)
		}
	}
	return merged
}

// claimant is an entry whose space somebody else claims too.
type claimant struct {
	extent
	index int64
}

// resolver is the second walk through the table.
type resolver struct {
	*batPass
	// Who keeps a place: payload blocks by the multiple of the block size that
	// they begin in, which two blocks that do not overlap never share; bitmap
	// blocks by their place.
	blocks, bitmaps map[int64]claimant
	logTold         bool
}

func (r *resolver) pass(anchors bool) func(first int64, entries []uint64) error {
	return func(first int64, entries []uint64) error {
		for i, word := range entries {
			e := ondisk.BATEntry(word)
			if e.Offset() <= 0 || e.OffsetMB() > maxFileSize/ondisk.MiB {
				continue
			}
			c, isAnchor, ok := r.spaceOf(first+int64(i), e)
			if ok && isAnchor == anchors && r.contested(c.extent) {
				r.settle(c, e, isAnchor)
			}
		}
		return nil
	}
}

// spaceOf returns what an entry claims, as the first walk saw it.
func (r *resolver) spaceOf(index int64, e ondisk.BATEntry) (c claimant, anchor, ok bool) {
	c = claimant{extent{e.Offset(), r.g.BlockSize}, index}
	if r.g.IsBitmap(index) {
		c.length = ondisk.BitmapBlockSize
		return c, false, r.g.HasParent && e.State() == ondisk.BitmapPresent && c.end() <= r.end
	}
	if r.g.BlockOf(index) >= r.batPass.blocks {
		return c, true, (isBlock(e.State()) || e.State() == ondisk.BlockUndefined || e.State() == ondisk.BlockUnmapped) && e.Reserved() == 0 && c.off < r.end
	}
	switch e.State() {
	case ondisk.BlockFullyPresent:
		return c, false, c.off < r.end
	case ondisk.BlockPartiallyPresent:
		return c, false, r.g.HasParent && c.off < r.end
	case ondisk.BlockUndefined, ondisk.BlockUnmapped:
		return c, true, c.end() <= r.end
	}
	return c, false, false
}

func (r *resolver) contested(e extent) bool {
	i, _ := slices.BinarySearchFunc(r.clashes, e.off, func(have extent, off int64) int { return cmp.Compare(have.end()-1, off) })
	return i < len(r.clashes) && r.clashes[i].off < e.end()
}

// settle gives a claimant its place, or tells who has it.
func (r *resolver) settle(c claimant, e ondisk.BATEntry, anchor bool) {
	name := r.c.places.at(c.off, c.length)
	if r.c.places.holds(logName, c.off, c.length) {
		r.moveLog(c, e)
	}
	other, taken := r.keeper(c)
	if name == "" && !taken {
		r.keep(c)
		return
	}
	who := func() string {
		if name != "" {
			return "the " + name
		}
		return fmt.Sprintf("BAT entry %d", other.index)
	}
	if anchor {
		better := ondisk.MakeBATEntry(e.State(), 0)
		if isBlock(e.State()) { // beyond the disk
			better = 0
		}
		r.c.plan.replace(c.index, better)
		if !r.c.counted(CodeBATOverlap, SeverityCorrupt) {
			r.fixable(CodeBATOverlap, SeverityCorrupt, c.index, e, fmt.Sprintf("make it %#x", uint64(better)), "%v remembers a place that belongs to %s", e.State(), who())
		}
		return
	}
	// A copy of what both show now gives each its own.
	r.c.plan.copyBlock(c)
	if !r.c.counted(CodeBATOverlap, SeverityCorrupt) {
		r.fixable(CodeBATOverlap, SeverityCorrupt, c.index, e, "give it a copy of its own", "its %#x bytes at %#x are claimed by %s too", c.length, c.off, who())
	}
}

// moveLog tells of a block in the log's place, the first one alone: it is the log that goes.
func (r *resolver) moveLog(c claimant, e ondisk.BATEntry) {
	if r.logTold {
		return
	}
	r.logTold, r.c.plan.moveLog = true, true
	r.fixable(CodeLogPlace, SeverityCorrupt, c.index, e, "give the log a new place", "its %#x bytes at %#x are claimed by the log too", c.length, c.off)
}

// keeper returns who has some of a claimant's place already.
func (r *resolver) keeper(c claimant) (claimant, bool) {
	for bucket := c.off/r.g.BlockSize - 1; bucket <= (c.end()-1)/r.g.BlockSize; bucket++ {
		if o, ok := r.blocks[bucket]; ok && o.off < c.end() && c.off < o.end() {
			return o, true
		}
	}
	for at := c.off; at < c.end() && len(r.bitmaps) > 0; at += ondisk.BitmapBlockSize {
		if o, ok := r.bitmaps[at]; ok {
			return o, true
		}
	}
	return claimant{}, false
}

func (r *resolver) keep(c claimant) {
	if c.length == ondisk.BitmapBlockSize && r.g.IsBitmap(c.index) {
		r.bitmaps[c.off] = c
		return
	}
	r.blocks[c.off/r.g.BlockSize] = c
}
