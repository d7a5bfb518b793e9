package vhdx

import (
	"bytes"
	"context"
	"errors"
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
	if err := im.usable(false); err != nil {
		return false, err
	}
	at, err := im.dataIn(context.Background(), 0, im.size.Load())
	return at < 0, err
}

// dataIn returns where a range of the disk holds more than zeros, by the first
// byte of a piece that does; -1: nowhere.
func (im *Image) dataIn(ctx context.Context, off, end int64) (int64, error) {
	buf, done := borrowMiB()
	defer done()
	for off < end {
		n, blank, err := im.blankPiece(ctx, off, end-off, buf)
		if err != nil {
			return 0, fmt.Errorf("%s: read at %#x: %w", im.name, off, err)
		}
		if !blank {
			return off, nil
		}
		off += n
	}
	return -1, nil
}

// blankPiece looks at the first part of a range that lies in one piece.
func (im *Image) blankPiece(ctx context.Context, off, n int64, buf []byte) (length int64, blank bool, err error) {
	pin := im.pins.enter()
	defer im.pins.leave(pin)
	at, err := im.find(off, n)
	if err != nil || at.layer == nil {
		return at.n, true, errors.Join(err, ctx.Err())
	}
	blank, err = at.layer.blankRange(ctx, at.off, at.off+at.n, buf)
	return at.n, blank, err
}

// blankBlock reports whether a block that has space holds only zeros.
func (im *Image) blankBlock(block int64, buf []byte) (bool, error) {
	pin := im.pins.enter()
	defer im.pins.leave(pin)
	at := im.payload(block).Offset()
	return im.blankRange(context.Background(), at, at+im.blockSize, buf)
}

// blankRange reports whether a range of the file reads zero. What lies beyond
// the file's end does.
func (im *Image) blankRange(ctx context.Context, off, end int64, buf []byte) (bool, error) {
	size, err := im.f.Size()
	if err != nil {
		return false, err
	}
	end = min(end, size)
	seeker, canSeek := im.f.(dataSeeker)
	for off < end {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		if canSeek {
			next, err := seeker.NextData(off, end)
			if err != nil {
				return false, err
			}
			if off = max(off, next&^(ioPage-1)); off >= end {
				break
			}
		}
		n := min(end-off, int64(len(buf))-off%ioPage) // whole pages from the second read on
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
