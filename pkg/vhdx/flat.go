package vhdx

import (
	"slices"
	"sort"
	"sync"
	"sync/atomic"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// flatMap is a chain in one table: for each unit of the disk, which is the
// smallest block of any layer, where it is read.
type flatMap struct {
	shift uint // log2 of the unit
	size  int64
	units []flatUnit

	// windows are parts of partially present units that have been asked for;
	// held is how many runs they have.
	windows sync.Map // of int64, offset/windowSize, to []windowRun
	held    atomic.Int64
}

// flatUnit is a unit that reads zero (0), lies whole in a layer's file, or is
// partially present in that layer, the first to be asked.
//
//	bits 0..1 kind, 2..17 layer, 20..63 offset in the file in MiB
type flatUnit uint64

const (
	flatZero flatUnit = iota
	flatWhole
	flatMixed

	flatKind       = 3
	flatLayerShift = 2
	flatLayerMask  = 1<<16 - 1
)

func (u flatUnit) layer() int    { return int(u >> flatLayerShift & flatLayerMask) }
func (u flatUnit) offset() int64 { return int64(u &^ (ondisk.MiB - 1)) }

// locate is chain.locate.
func (f *flatMap) locate(c *chain, off, n int64) (place, error) {
	if off >= f.size {
		return place{n: n}, nil
	}
	inUnit := off & (1<<f.shift - 1)
	n = min(n, 1<<f.shift-inUnit, f.size-off)
	u := f.units[off>>f.shift]
	switch u & flatKind {
	case flatWhole:
		return place{c.layers[u.layer()], u.offset() + inUnit, n}, nil
	case flatMixed:
		return f.inWindow(c, u.layer(), off, n)
	}
	return place{n: n}, nil
}

const (
	windowSize = ondisk.MiB // no unit is smaller
	// maxWindowRuns bounds the memory of all windows of a chain: 16 MiB.
	maxWindowRuns = 1 << 20
)

// windowRun is a piece of a window: up to end, it reads from off on in the file
// of a layer, or zero where layer is -1.
type windowRun struct {
	end   uint32
	layer int32
	off   int64
}

// inWindow finds a range in a partially present unit. The first to ask makes
// the window, by asking the layers from first on.
func (f *flatMap) inWindow(c *chain, first int, off, n int64) (place, error) {
	key, in := off/windowSize, off%windowSize
	known, ok := f.windows.Load(key)
	if !ok {
		runs, err := c.window(first, key*windowSize, min(windowSize, f.size-key*windowSize))
		if err != nil {
			return place{}, err
		}
		if f.held.Add(int64(len(runs))) > maxWindowRuns {
			f.windows.Clear()
			f.held.Store(int64(len(runs)))
		}
		known = runs
		f.windows.Store(key, known)
	}
	runs := known.([]windowRun)
	i := sort.Search(len(runs), func(i int) bool { return int64(runs[i].end) > in })
	r := runs[i]
	p := place{n: min(n, int64(r.end)-in)}
	if r.layer >= 0 {
		p.layer = c.layers[r.layer]
		p.off = r.off + in
		if i > 0 {
			p.off -= int64(runs[i-1].end)
		}
	}
	return p, nil
}

// window asks the layers about a whole window.
func (c *chain) window(first int, start, length int64) ([]windowRun, error) {
	var runs []windowRun
	for off := start; off < start+length; {
		p, err := c.ask(first, off, start+length-off)
		if err != nil {
			return nil, err
		}
		r := windowRun{end: uint32(off - start + p.n), layer: -1, off: p.off}
		if p.layer != nil {
			r.layer = int32(slices.Index(c.layers, p.layer))
		}
		if last := len(runs) - 1; last >= 0 && runs[last].layer == r.layer && (r.layer < 0 || runs[last].continues(runs[:last], r)) {
			runs[last].end = r.end
		} else {
			runs = append(runs, r)
		}
		off += p.n
	}
	return slices.Clip(runs), nil
}

// continues reports whether next lies right behind r in the file.
func (r windowRun) continues(before []windowRun, next windowRun) bool {
	start := uint32(0)
	if len(before) > 0 {
		start = before[len(before)-1].end
	}
	return r.off+int64(r.end-start) == next.off
}

// flatten builds the table from the lowest layer up. A layer hides what is
// below it, and where it ends so does all below.
func (c *chain) flatten() {
	f := &flatMap{shift: 63, size: c.layers[0].size.Load()}
	for _, layer := range c.layers {
		f.shift = min(f.shift, layer.blockShift)
	}
	f.units = make([]flatUnit, (f.size+1<<f.shift-1)>>f.shift)
	for i := len(c.layers) - 1; i >= 0; i-- {
		f.overlay(c.layers[i], flatUnit(i)<<flatLayerShift)
	}
	c.flat.Store(f)
}

// overlay puts a layer over what is below it.
func (f *flatMap) overlay(layer *Image, number flatUnit) {
	size := layer.size.Load()
	per := int64(1) << (layer.blockShift - f.shift)
	b := layer.bat.Load()
	total := int64(len(f.units))
	for block := range min(b.geometry.PayloadBlocks(), (total+per-1)/per) {
		e := b.payload(block)
		if e == 0 {
			continue // NOT_PRESENT
		}
		unit := flatZero
		switch e.State() {
		case ondisk.BlockFullyPresent:
			unit = flatWhole | number | flatUnit(e.Offset())
		case ondisk.BlockPartiallyPresent:
			unit = flatMixed | number
		}
		for i := block * per; i < min(total, (block+1)*per); i++ {
			f.units[i] = unit
			if unit&flatKind == flatWhole {
				unit += 1 << f.shift
			}
		}
	}
	// The unit in which the layer ends is asked for step by step, unless the
	// whole table ends there; what follows reads zero.
	end := (size + 1<<f.shift - 1) >> f.shift
	if size < f.size && size&(1<<f.shift-1) != 0 {
		f.units[end-1] = flatMixed | number
	}
	if end < total {
		clear(f.units[end:])
	}
}
