package vhdx

import (
	"fmt"
	"slices"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// Extent is where a part of the virtual disk lies in the image file.
type Extent struct {
	Offset     int64 // of the virtual disk
	Length     int64
	FileOffset int64 // -1: reads zero, nothing in the file
	// Layer says in whose file: 0 the image's own, 1 its parent's, and so on.
	// Only the own one may be read or written on the image's descriptor.
	Layer int
}

// Resolution is a range of the virtual disk turned into extents of the file,
// and a guard that keeps them where they are. It ends in exactly one Commit or
// Abort. The zero value is ready for use, and again after its end.
type Resolution struct {
	Extents []Extent

	im     *Image
	pin    uint32
	writes []written
}

// Resolve finds the extents of a range. For a write, blocks without space get
// some: the caller writes its payload to the extents and then calls Commit, or
// Abort if a write failed. Two writers of one new block get the same space. It
// may block, for the file to grow. A write to a differencing image is in whole
// logical sectors.
func (im *Image) Resolve(write bool, off, n int64, r *Resolution) error {
	if !write {
		im = im.head()
		return im.resolve(false, im.pins.enter(), off, n, r)
	}
	im, pin, err := im.enterWrite()
	if err != nil {
		return err
	}
	return im.resolve(true, pin, off, n, r)
}

// resolve is Resolve inside the image; the pin becomes r's.
func (im *Image) resolve(write bool, pin uint32, off, n int64, r *Resolution) error {
	*r = Resolution{Extents: r.Extents[:0], im: im, pin: pin, writes: r.writes[:0]}
	err := im.usable(write)
	if err == nil {
		err = im.checkRange(off, n)
	}
	if lss := int64(im.metadata.logicalSectorSize); err == nil && write && im.metadata.params.HasParent && (off|n)%lss != 0 {
		err = fmt.Errorf("%s: write %#x bytes at %#x: not in sectors of %d bytes: %w", im.name, n, off, lss, ErrInvalid)
	}
	if err != nil {
		r.end()
		return err
	}
	for end := off + n; off < end; {
		e, err := im.extentOf(write, off, end-off, r)
		if err != nil {
			r.Abort()
			return err
		}
		r.Extents = append(r.Extents, e)
		off += e.Length
	}
	return nil
}

// extentOf returns where the first part of a range lies.
func (im *Image) extentOf(write bool, off, n int64, r *Resolution) (Extent, error) {
	if write {
		n = min(n, im.blockSize-off&(im.blockSize-1))
		at, err := im.placeForWrite(off, n, r)
		return Extent{Offset: off, Length: n, FileOffset: at}, err
	}
	p, err := im.find(off, n)
	e := Extent{Offset: off, Length: p.n, FileOffset: -1}
	if p.layer != nil {
		e.FileOffset, e.Layer = p.off, im.layerNumber(p.layer)
	}
	return e, err
}

// layerNumber is 0 for the image itself, 1 for its parent, and so on.
func (im *Image) layerNumber(layer *Image) int {
	if layer == im {
		return 0
	}
	return 1 + slices.Index(im.below.Load().layers, layer)
}

// placeForWrite returns where a range inside one block is to be written. A
// block that lies nowhere is claimed a place.
func (im *Image) placeForWrite(off, n int64, r *Resolution) (int64, error) {
	block := off >> im.blockShift
	inBlock := off & (im.blockSize - 1)
	e := im.payload(block)
	if e.State() == ondisk.BlockFullyPresent || e.State() == ondisk.BlockPartiallyPresent && im.allPresent(im.bat.Load(), off, n) {
		return e.Offset() + inBlock, nil
	}
	w := written{block: block, off: off, n: n}
	if im.metadata.params.HasParent {
		if err := im.prepare(&w); err != nil {
			return -1, err
		}
	}
	var err error
	if w.claim, err = im.claimBlock(block); err != nil {
		return -1, err
	}
	at := im.payload(block).Offset()
	if w.claim != nil {
		at = w.claim.off
	}
	if w.claim != nil || im.metadata.params.HasParent {
		r.writes = append(r.writes, w)
	}
	return at + inBlock, nil
}

// Commit publishes the mapping of new blocks. The payload is in the file.
func (r *Resolution) Commit() error {
	var first error
	for i := range r.writes {
		w := &r.writes[i]
		if first != nil {
			r.im.abandon(w)
			continue
		}
		first = r.im.publish(w)
	}
	r.end()
	return first
}

// Abort gives new space up, which may hold anything by now.
func (r *Resolution) Abort() {
	for i := range r.writes {
		r.im.abandon(&r.writes[i])
	}
	r.end()
}

func (r *Resolution) end() {
	r.writes = r.writes[:0]
	r.im.pins.leave(r.pin)
}
