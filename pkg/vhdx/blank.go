package vhdx

import (
	"bytes"
	"fmt"
)

// dataSeeker is a file that knows its holes.
type dataSeeker interface {
	// NextData returns the next offset in [off, end) that may not be zero, or end.
	NextData(off, end int64) (int64, error)
}

// Blank reports whether the virtual disk provably holds nothing but zeros: no
// payload block has space, or those that have hold holes or zeros (read and
// compared; holes are skipped where the filesystem tells them).
func (im *Image) Blank() (bool, error) {
	im = im.head()
	pin := im.pins.enter()
	defer im.pins.leave(pin)
	if err := im.usable(false); err != nil {
		return false, err
	}
	buf := alignedBytes(1 << 20)
	for off, size := int64(0), im.size.Load(); off < size; {
		at, err := im.find(off, size-off)
		if err != nil {
			return false, fmt.Errorf("%s: read at %#x: %w", im.name, off, err)
		}
		if at.layer != nil {
			if blank, err := at.layer.blankRange(at.off, at.off+at.n, buf); err != nil || !blank {
				return false, err
			}
		}
		off += at.n
	}
	return true, nil
}

func (im *Image) blankRange(off, end int64, buf []byte) (bool, error) {
	size, err := im.f.Size()
	if err != nil {
		return false, err
	}
	end = min(end, size)
	seeker, canSeek := im.f.(dataSeeker)
	for off < end {
		if canSeek {
			next, err := seeker.NextData(off, end)
			if err != nil {
				return false, err
			}
			if off = next &^ (ioPage - 1); off >= end {
				break
			}
		}
		n := min(end-off, int64(len(buf)))
		if err := readFull(im.f, buf[:n], off); err != nil {
			return false, fmt.Errorf("%s: read payload at %#x: %w", im.name, off, err)
		}
		if !bytes.Equal(buf[:n], zeros[:n]) {
			return false, nil
		}
		off += n
	}
	return true, nil
}
