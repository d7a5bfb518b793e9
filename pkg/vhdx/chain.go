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
	if flat := c.flat.Load(); flat != nil {
		return flat.locate(c, off, n)
	}
	return c.ask(0, off, n)
}

// ask is locate by asking layer after layer, from the first-th on.
func (c *chain) ask(first int, off, n int64) (place, error) {
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
