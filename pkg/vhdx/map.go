package vhdx

import (
	"fmt"
	"io"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// RunKind says what a range of the virtual disk is.
type RunKind uint8

// The kinds of run. All but RunData read zero.
const (
	RunAbsent    RunKind = iota // NOT_PRESENT in every layer: never written
	RunZero                     // ZERO
	RunUndefined                // UNDEFINED
	RunUnmapped                 // UNMAPPED
	RunData                     // in the file of a layer
)

func (k RunKind) String() string {
	return [...]string{"absent", "zero", "undefined", "unmapped", "data"}[min(k, RunData)]
}

// Run is a range of the virtual disk that is alike throughout, and lies in one
// piece if it lies in a file.
type Run struct {
	Offset, Length int64
	Kind           RunKind
	// Layer is whose block table says so: 0 for the image itself, n for its
	// nth ancestor.
	Layer int
	// FileOffset in that layer's file; -1 if Kind is not RunData.
	FileOffset int64
}

// NextRun describes the disk from off on, as far as it is alike; io.EOF at its
// end. An image that is being written may have changed by the time it answers.
func (im *Image) NextRun(off int64) (Run, error) {
	pin := im.pins.enter()
	defer im.pins.leave(pin)
	if err := im.usable(false); err != nil {
		return Run{}, err
	}
	return im.nextRun(off)
}

// nextRun is NextRun for a caller inside im.pins.
func (im *Image) nextRun(off int64) (Run, error) {
	size := im.Size()
	switch {
	case off == size:
		return Run{}, io.EOF
	case off < 0 || off > size:
		return Run{}, im.checkRange(off, 0)
	}
	run := im.runInBlock(off)
	for end := run.Offset + run.Length; end < size; end = run.Offset + run.Length {
		next := im.runInBlock(end)
		if next.Kind != run.Kind || next.Layer != run.Layer || run.Kind == RunData && next.FileOffset != run.FileOffset+run.Length {
			break
		}
		run.Length += next.Length
	}
	return run, nil
}

// runInBlock is nextRun up to the end of the block at most.
func (im *Image) runInBlock(off int64) Run {
	run := Run{Offset: off, Length: min(im.Size()-off, im.blockSize-off&(im.blockSize-1)), FileOffset: -1}
	switch e := im.payload(off >> im.blockShift); e.State() {
	case ondisk.BlockFullyPresent:
		run.Kind, run.FileOffset = RunData, e.Offset()+off&(im.blockSize-1)
	case ondisk.BlockZero:
		run.Kind = RunZero
	case ondisk.BlockUndefined:
		run.Kind = RunUndefined
	case ondisk.BlockUnmapped:
		run.Kind = RunUnmapped
	}
	return run
}

// holeSeeker is a file that knows where its holes begin and end.
type holeSeeker interface {
	dataSeeker
	// NextHole returns the next offset in [off, end) that lies in a hole, or end.
	NextHole(off, end int64) (int64, error)
}

// NextData returns the first range at or after off that may hold anything but
// zeros; start is Size if there is none. It asks the block tables, and inside
// blocks the filesystem for holes: no data is read.
func (im *Image) NextData(off int64) (start, end int64, err error) {
	pin := im.pins.enter()
	defer im.pins.leave(pin)
	if err := im.usable(false); err != nil {
		return 0, 0, err
	}
	for size := im.Size(); off < size; {
		run, err := im.nextRun(off)
		if err != nil {
			return 0, 0, err
		}
		off = run.Offset + run.Length
		if run.Kind != RunData {
			continue
		}
		first, last, err := im.dataInRun(run)
		if err != nil {
			return 0, 0, fmt.Errorf("%s: %w", im.name, err)
		}
		if first < last {
			return first, last, nil
		}
	}
	size := im.Size()
	return size, size, nil
}

// dataInRun returns the first part of a run, in offsets of the disk and whole
// pages, that is no hole in the file; first == last if all of it is one.
func (im *Image) dataInRun(run Run) (first, last int64, err error) {
	first, last = run.Offset, run.Offset+run.Length
	seeker, ok := im.layerFile(run.Layer).(holeSeeker)
	if !ok {
		return first, last, nil
	}
	fileEnd := run.FileOffset + run.Length
	data, err := seeker.NextData(run.FileOffset, fileEnd)
	if err != nil || data >= fileEnd {
		return last, last, err
	}
	hole, err := seeker.NextHole(data, fileEnd)
	if err != nil {
		return first, last, err
	}
	toDisk := run.Offset - run.FileOffset
	return max(first, data&^(ioPage-1)+toDisk), min(last, roundUp(hole, ioPage)+toDisk), nil
}

// layerFile returns the file that holds a layer's payload. A log applied in
// memory never touches payload.
func (im *Image) layerFile(int) File {
	if o, ok := im.f.(*overlayFile); ok {
		return o.File
	}
	return im.f
}
