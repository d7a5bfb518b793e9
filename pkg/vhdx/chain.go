package vhdx

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// chain is what lies below a differencing image: frozen layers, the parent
// first. It never changes; an image whose parent is replaced gets another.
type chain struct {
	layers []*Image
	parent *parentRef // keeps the layers open
	// flat answers for all layers at once; nil until it has been built, and
	// then the layers are asked in turn.
	flat atomic.Pointer[flatMap]
}

func newChain(ref *parentRef) *chain {
	c := &chain{parent: ref, layers: []*Image{ref.im}}
	if below := ref.im.below.Load(); below != nil {
		c.layers = append(c.layers, below.layers...)
	}
	return c
}

// place says what a range of the virtual disk reads: n bytes at off in the
// file of layer, or zeros where layer is nil.
type place struct {
	layer *Image
	off   int64
	n     int64
}

// releaseChain gives up what is below, when the image is closed.
func (im *Image) releaseChain() error {
	c := im.below.Swap(nil)
	if c == nil {
		return nil
	}
	return parents.release(c.parent)
}

// adoptParent puts the image on a parent that is open already.
func (im *Image) adoptParent(ref *parentRef) error {
	if err := im.checkParent(ref.im); err != nil {
		return err
	}
	im.below.Store(newChain(ref))
	return nil
}

// locate returns what the range [off, off+n) reads, or the first part of it
// that lies in one piece. off is beyond no layer's size but it may be: what
// lies beyond reads zero.
func (c *chain) locate(off, n int64) (place, error) {
	first := 0
	if flat := c.flat.Load(); flat != nil {
		p, from, ok := flat.locate(c, off, n)
		if ok {
			return p, nil
		}
		n, first = p.n, from // partially present in the layer at from: bits decide
	}
	for _, layer := range c.layers[first:] {
		size := layer.size.Load()
		if off >= size {
			return place{n: n}, nil
		}
		p, decided, err := layer.ownPlace(layer.bat.Load(), off, min(n, size-off))
		if err != nil || decided {
			return p, err
		}
		n = p.n
	}
	return place{n: n}, nil
}

// ownPlace returns what this layer alone knows of the first part of a range:
// decided is false where the layer below has to be asked.
func (im *Image) ownPlace(b *bat, off, n int64) (p place, decided bool, err error) {
	inBlock := off & (im.blockSize - 1)
	n = min(n, im.blockSize-inBlock)
	e := b.payload(off >> im.blockShift)
	switch e.State() {
	case ondisk.BlockFullyPresent:
		return place{im, e.Offset() + inBlock, n}, true, nil
	case ondisk.BlockPartiallyPresent:
		present, run, err := im.presence(b, off, n)
		if !present {
			return place{n: run}, false, err
		}
		return place{im, e.Offset() + inBlock, run}, true, err
	case ondisk.BlockNotPresent:
		return place{n: n}, !im.metadata.params.HasParent, nil
	}
	return place{n: n}, true, nil
}

// find returns what the first part of a range of the virtual disk reads, the
// layers below included. Caller is inside im.pins.
func (im *Image) find(off, n int64) (place, error) {
	p, decided, err := im.ownPlace(im.bat.Load(), off, n)
	if err != nil || decided {
		return p, err
	}
	below := im.below.Load()
	if below == nil {
		return p, fmt.Errorf("%#x bytes at %#x are the parent's, and the image is open without it: %w", p.n, off, ErrParentMissing)
	}
	return below.locate(off, p.n)
}

// readPlace fills p from a place in this image's file.
func (im *Image) readPlace(p []byte, at int64) (int, error) {
	n, err := im.f.ReadAt(p, at)
	switch {
	case n == len(p):
		return n, nil
	case err != nil && !errors.Is(err, io.EOF):
		return n, err
	case at+int64(n) < im.fileEnd:
		return n, io.ErrUnexpectedEOF // somebody has truncated the file under us
	}
	clear(p[n:]) // the file never had the end of this block
	return len(p), nil
}

// flatMap is a chain in one table: for each unit of the disk, which is the
// smallest block of any layer, where it is read.
type flatMap struct {
	shift uint // log2 of the unit
	size  int64
	units []flatUnit
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

// locate is chain.locate; ok is false where the layer at from must be asked.
func (f *flatMap) locate(c *chain, off, n int64) (p place, from int, ok bool) {
	if off >= f.size {
		return place{n: n}, 0, true
	}
	inUnit := off & (1<<f.shift - 1)
	n = min(n, 1<<f.shift-inUnit, f.size-off)
	u := f.units[off>>f.shift]
	switch u & flatKind {
	case flatWhole:
		return place{c.layers[u.layer()], u.offset() + inUnit, n}, 0, true
	case flatMixed:
		return place{n: n}, u.layer(), false
	}
	return place{n: n}, 0, true
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
