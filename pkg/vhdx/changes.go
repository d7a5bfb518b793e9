package vhdx

import (
	"context"
	"fmt"
)

// Allocated calls visit, in ascending order, for each range of the disk from
// off on that may hold anything but zeros: what the block tables and sector bitmaps
// name, less the holes that the filesystem has there. No data is read. The ranges
// do not touch each other.
func (o *Outline) Allocated(ctx context.Context, off int64, visit func(off, n int64) error) error {
	if err := o.checkStart(off); err != nil {
		return err
	}
	var view outlineView
	for {
		l, err := o.layer(len(view))
		if err != nil {
			return err
		}
		if l == nil {
			break
		}
		view = append(view, l)
	}
	out := joiner{visit: visit}
	for size := o.Size(); off < size; {
		s, layer, err := view.at(off, size)
		if err == nil {
			err = ctx.Err()
		}
		if err == nil && s.kind == spanData {
			err = layer.eachData(s, out.add)
		}
		if err != nil {
			return err
		}
		off = s.end
	}
	return out.flush()
}

// Changed calls visit, in ascending order, for each range of o's disk from off
// on where it may differ from what base shows; what lies beyond the end of base
// counts as different. It is what the images of the two chains say that are not
// in both: the sectors that a layer has bits for, and otherwise its blocks. Either
// of the two may be the older one. No data is read. The ranges do not touch each
// other. [ErrUnrelated].
func (o *Outline) Changed(ctx context.Context, base *Outline, off int64, visit func(off, n int64) error) error {
	if err := o.checkStart(off); err != nil {
		return err
	}
	above, baseAbove, err := o.meet(base)
	if err != nil {
		return err
	}
	c := comparison{
		upper: o.layers[:above], base: base.layers[:baseAbove], baseSize: base.Size(),
		ends: [2]int64{o.layers[above].size, base.layers[baseAbove].size},
	}
	out := joiner{visit: visit}
	for size := o.Size(); off < size; {
		end, differ, err := c.at(off, size)
		if err == nil {
			err = ctx.Err()
		}
		if err == nil && differ {
			err = out.add(off, end-off)
		}
		if err != nil {
			return err
		}
		off = end
	}
	return out.flush()
}

func (o *Outline) checkStart(off int64) error {
	if off < 0 || off > o.Size() {
		return fmt.Errorf("%s: map from %#x on, of a disk of %#x: %w", o.layers[0].im.name, off, o.Size(), ErrOutOfRange)
	}
	return nil
}

// outlineView is a chain, or the upper part of one.
type outlineView []*outlineLayer

// at returns what the topmost layer that says something says of the disk from
// off on, up to end at most; spanThrough and nil where none does.
func (v outlineView) at(off, end int64) (span, *outlineLayer, error) {
	for _, l := range v {
		s, err := l.at(off)
		if err != nil {
			return span{}, nil, err
		}
		end = min(end, s.end)
		if s.kind != spanThrough {
			return span{off: off, end: end, kind: s.kind, at: s.at + off - s.off}, l, nil
		}
	}
	return span{off: off, end: end, kind: spanThrough}, nil, nil
}

// comparison is of two chains that show the same further down.
type comparison struct {
	upper, base outlineView // what lies above that
	baseSize    int64
	// ends are those of the two images that show the same up to the lesser one.
	ends [2]int64
}

// at says whether the two may differ from off on, and up to where that holds.
func (c *comparison) at(off, end int64) (_ int64, differ bool, err error) {
	if off >= c.baseSize {
		return end, true, nil
	}
	end = min(end, c.baseSize)
	a, _, err := c.upper.at(off, end)
	if err != nil {
		return 0, false, err
	}
	b, _, err := c.base.at(off, a.end)
	if err != nil {
		return 0, false, err
	}
	end = b.end
	if a.kind != spanThrough || b.kind != spanThrough {
		return end, a.kind != spanZero || b.kind != spanZero, nil
	}
	same := min(c.ends[0], c.ends[1])
	if off >= same {
		return end, c.ends[0] != c.ends[1], nil
	}
	return min(end, same), false, nil
}

// seekFrom is from how many bytes of data on it is worth asking for holes.
const seekFrom = 64 << 10

// eachData calls visit for the parts of a range in this file that are no holes.
func (l *outlineLayer) eachData(s span, visit func(off, n int64) error) error {
	seeker, ok := l.im.payloadFile().(holeSeeker)
	if !ok || s.end-s.off < seekFrom {
		return visit(s.off, s.end-s.off)
	}
	toDisk := s.off - s.at
	for at, end := s.at, s.at+s.end-s.off; at < end; {
		data, err := seeker.NextData(at, end)
		if err != nil || data >= end {
			return err
		}
		hole, err := seeker.NextHole(data, end)
		if err != nil {
			return err
		}
		data, hole = max(at, data&^(ioPage-1)), min(end, roundUp(hole, ioPage))
		if data >= hole { // the file ends, or has changed under us
			return nil
		}
		if err := visit(data+toDisk, hole-data); err != nil {
			return err
		}
		at = hole
	}
	return nil
}

// joiner joins ranges that touch.
type joiner struct {
	visit    func(off, n int64) error
	off, end int64
}

func (j *joiner) add(off, n int64) error {
	if off == j.end && j.off < j.end {
		j.end += n
		return nil
	}
	err := j.flush()
	j.off, j.end = off, off+n
	return err
}

func (j *joiner) flush() error {
	if j.off == j.end {
		return nil
	}
	return j.visit(j.off, j.end-j.off)
}
