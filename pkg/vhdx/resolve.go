package vhdx

import (
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// Extent is where a part of the virtual disk lies in the image file.
type Extent struct {
	Offset     int64 // of the virtual disk
	Length     int64
	FileOffset int64 // -1: reads zero, nothing in the file
}

// Resolution is a range of the virtual disk turned into extents of the file,
// and a guard that keeps them where they are. It ends in exactly one Commit or
// Abort. The zero value is ready for use, and again after its end.
type Resolution struct {
	Extents []Extent

	im     *Image
	pin    uint32
	claims []*claim
}

// Resolve finds the extents of a range. For a write, blocks without space get
// some: the caller writes its payload to the extents and then calls Commit, or
// Abort if a write failed. Two writers of one new block get the same space. It
// may block, for the file to grow.
func (im *Image) Resolve(write bool, off, n int64, r *Resolution) error {
	if write {
		if err := im.begin(); err != nil {
			return err
		}
	}
	*r = Resolution{Extents: r.Extents[:0], im: im, pin: im.pins.enter(), claims: r.claims[:0]}
	err := im.usable(write)
	if err == nil {
		err = im.checkRange(off, n)
	}
	if err != nil {
		r.end()
		return err
	}
	for end := off + n; off < end; {
		e := Extent{Offset: off, Length: min(end-off, im.blockSize-off&(im.blockSize-1)), FileOffset: -1}
		place, err := im.placeOf(off>>im.blockShift, write, r)
		if err != nil {
			r.Abort()
			return err
		}
		if place > 0 {
			e.FileOffset = place + off&(im.blockSize-1)
		}
		r.Extents = append(r.Extents, e)
		off += e.Length
	}
	return nil
}

// placeOf returns where a block lies, 0 if nowhere. For a write it is claimed
// a place.
func (im *Image) placeOf(block int64, write bool, r *Resolution) (int64, error) {
	if e := im.payload(block); e.State() == ondisk.BlockFullyPresent {
		return e.Offset(), nil
	}
	if !write {
		return 0, nil
	}
	c, err := im.claimBlock(block)
	if err != nil {
		return 0, err
	}
	if c == nil {
		return im.payload(block).Offset(), nil
	}
	r.claims = append(r.claims, c)
	return c.off, nil
}

// Commit publishes the mapping of new blocks. The payload is in the file.
func (r *Resolution) Commit() error {
	var first error
	for _, c := range r.claims {
		if first != nil {
			r.im.abandon(c)
			continue
		}
		first = r.im.publish(c)
	}
	r.end()
	return first
}

// Abort gives new space up, which may hold anything by now.
func (r *Resolution) Abort() {
	for _, c := range r.claims {
		r.im.abandon(c)
	}
	r.end()
}

func (r *Resolution) end() {
	r.claims = r.claims[:0]
	r.im.pins.leave(r.pin)
}
