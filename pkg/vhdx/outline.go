package vhdx

import (
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
)

// Outline is a frozen image, opened for what its block table and its sector
// bitmaps say, and those of the images that it stands on. Its memory does not
// grow with the disk: the tables are read where they are asked, in windows. One
// call at a time.
type Outline struct {
	parents ParentOpener
	layers  []*outlineLayer // the image and its ancestors, as far as they have been needed
}

// OpenOutline opens the outline of the image in f, which it takes over, locked
// against writers; what is below is opened when it is needed. Nothing in the
// chain may be written as long as it is open. A dirty log is applied in memory.
func OpenOutline(f File, parentsIn ParentOpener) (*Outline, error) {
	l, err := openOutlineLayer(f)
	if err != nil {
		return nil, err
	}
	return &Outline{parents: parentsIn, layers: []*outlineLayer{l}}, nil
}

// Size is that of the disk.
func (o *Outline) Size() int64 { return o.layers[0].size }

// Close closes the image and its ancestors.
func (o *Outline) Close() error {
	var errs []error
	for _, l := range o.layers {
		errs = append(errs, l.im.f.Close())
	}
	return errors.Join(errs...)
}

// layer returns the nth ancestor, 0 being the image; nil where the chain ends.
func (o *Outline) layer(n int) (*outlineLayer, error) {
	for len(o.layers) <= n {
		child := o.layers[len(o.layers)-1].im
		if !child.metadata.params.HasParent {
			return nil, nil
		}
		parent, err := o.openParent(child)
		if err != nil {
			return nil, err
		}
		o.layers = append(o.layers, parent)
	}
	return o.layers[n], nil
}

// openParent opens the parent that a locator names. A cycle ends at the bound of
// a chain's length.
func (o *Outline) openParent(child *Image) (*outlineLayer, error) {
	fail := &ParentError{Child: child.name}
	switch {
	case len(o.layers) >= maxChainDepth:
		fail.Err = errTooDeep
	case o.parents == nil:
		fail.Err = fmt.Errorf("a differencing image, and nothing says where parents may be: %w", ErrParentRefused)
	}
	if fail.Err != nil {
		return nil, fail
	}
	f, fail := child.findParent(o.parents)
	if f == nil {
		return nil, fail
	}
	if fail.Err = lockShared(f); fail.Err != nil {
		return nil, errors.Join(fail, f.Close())
	}
	parent, err := openOutlineLayer(f)
	if err == nil {
		if err = child.checkParent(parent.im); err != nil {
			err = errors.Join(err, f.Close())
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", ErrParentMissing, err)
	}
	if fail.Err = err; err != nil {
		return nil, fail
	}
	return parent, nil
}

// openOutlineLayer opens one image, and of it only what leads to the table.
func openOutlineLayer(f File) (*outlineLayer, error) {
	im := &Image{f: f, name: f.Name(), opts: OpenOptions{ReadOnly: true}}
	err := im.openHead()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	l := &outlineLayer{im: im, size: im.metadata.virtualSize}
	if l.geometry, err = im.tableGeometry(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	l.shift = uint(bits.TrailingZeros32(im.metadata.params.BlockSize))
	l.ratio = uint(bits.TrailingZeros64(uint64(l.geometry.ChunkRatio())))
	l.chunk = -1
	return l, nil
}

// shows reports whether two images, which nobody writes, show the same disk
// (I-CHAIN-8), but for where it ends.
func (l *outlineLayer) shows(other *outlineLayer) bool {
	a, b := l.im.headers.current.DataWriteGUID, other.im.headers.current.DataWriteGUID
	return a == b && !a.IsZero()
}

// meet returns how many images of o and of other lie above the one that both
// stand on, or that is the same as one below the other.
func (o *Outline) meet(other *Outline) (above, otherAbove int, err error) {
	for i := 0; ; i++ { // the usual case: other is an ancestor
		l, err := o.layer(i)
		if err != nil {
			return 0, 0, err
		}
		if l == nil {
			break
		}
		if l.shows(other.layers[0]) {
			return i, 0, nil
		}
	}
	for j := 1; ; j++ {
		below, err := other.layer(j)
		if err != nil {
			return 0, 0, err
		}
		if below == nil {
			return 0, 0, fmt.Errorf("%s and %s: %w", o.layers[0].im.name, other.layers[0].im.name, ErrUnrelated)
		}
		for i, l := range o.layers {
			if l.shows(below) {
				return i, j, nil
			}
		}
	}
}
