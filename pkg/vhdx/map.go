package vhdx

import (
	"errors"
	"fmt"
	"io"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// RunKind says what a range of the virtual disk is.
type RunKind uint8

// The kinds of run. All but RunData read zero.
const (
	RunAbsent    RunKind = iota // NOT_PRESENT in every layer that is asked, or zero in a parent
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
	im = im.head()
	pin := im.pins.enter()
	defer im.pins.leave(pin)
	if err := im.usable(false); err != nil {
		return Run{}, err
	}
	return im.nextRun(off)
}

// nextRun is NextRun for a caller inside im.pins.
func (im *Image) nextRun(off int64) (Run, error) {
	size := im.size.Load()
	switch {
	case off == size:
		return Run{}, io.EOF
	case off < 0 || off > size:
		return Run{}, im.checkRange(off, 0)
	}
	run, err := im.runAt(off, size-off)
	for end := run.Offset + run.Length; err == nil && end < size; end = run.Offset + run.Length {
		next, err := im.runAt(end, size-end)
		if err != nil {
			return run, nil // whoever asks for what follows is told
		}
		if next.Kind != run.Kind || next.Layer != run.Layer || run.Kind == RunData && next.FileOffset != run.FileOffset+run.Length {
			break
		}
		run.Length += next.Length
	}
	return run, err
}

// runAt describes the first part of a range, which lies in one block.
func (im *Image) runAt(off, n int64) (Run, error) {
	p, err := im.find(off, n)
	if err != nil {
		return Run{}, fmt.Errorf("%s: map at %#x: %w", im.name, off, err)
	}
	run := Run{Offset: off, Length: p.n, FileOffset: -1}
	if p.layer != nil {
		run.Kind, run.FileOffset, run.Layer = RunData, p.off, im.layerNumber(p.layer)
		return run, nil
	}
	switch im.payload(off >> im.blockShift).State() {
	case ondisk.BlockZero:
		run.Kind = RunZero
	case ondisk.BlockUndefined:
		run.Kind = RunUndefined
	case ondisk.BlockUnmapped:
		run.Kind = RunUnmapped
	}
	return run, nil
}

// layer is the inverse of layerNumber.
func (im *Image) layer(number int) *Image {
	if below := im.below.Load(); number > 0 && below != nil && number <= len(below.layers) {
		return below.layers[number-1]
	}
	return im
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
	im = im.head()
	pin := im.pins.enter()
	defer im.pins.leave(pin)
	if err := im.usable(false); err != nil {
		return 0, 0, err
	}
	for size := im.size.Load(); off < size; {
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
	size := im.size.Load()
	return size, size, nil
}

// dataInRun returns the first part of a run, in offsets of the disk and whole
// pages, that is no hole in the file; first == last if all of it is one.
func (im *Image) dataInRun(run Run) (first, last int64, err error) {
	first, last = run.Offset, run.Offset+run.Length
	seeker, ok := im.layer(run.Layer).payloadFile().(holeSeeker)
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

// payloadFile is the file itself: a log applied in memory never touches
// payload.
func (im *Image) payloadFile() File {
	if o, ok := im.f.(*overlayFile); ok {
		return o.File
	}
	return im.f
}

// Layer is one image of a chain.
type Layer struct {
	Info
	// Parent is what the locator says of the image below; nil if there is none.
	Parent *ParentLink
}

// ParentLink is what an image says of its parent.
type ParentLink struct {
	// Linkage is the DataWriteGuid that the parent must have; Linkage2, while a
	// merge is under way, another that it may.
	Linkage, Linkage2 string
	Paths             []ParentPath
}

// Layers describes the image and all that it stands on, the parent after the
// child, as far as it is open.
func (im *Image) Layers() []Layer {
	im = im.head()
	layers := []Layer{{im.Info(), im.parentLink()}}
	if below := im.below.Load(); below != nil {
		for _, l := range below.layers {
			l.committing.Lock()
			layers = append(layers, Layer{l.infoLocked(), l.parentLink()})
			l.committing.Unlock()
		}
	}
	return layers
}

// ReadParentLink reads what the image in f says of its parent, and nothing
// behind that: neither its BAT nor the parent. nil: it has none. A dirty log is
// applied in memory. f stays open.
func ReadParentLink(f File) (*ParentLink, error) {
	im := &Image{f: f, name: f.Name(), opts: OpenOptions{ReadOnly: true}}
	if err := im.openHead(); err != nil {
		return nil, err
	}
	return im.parentLink(), nil
}

func (im *Image) parentLink() *ParentLink {
	if !im.metadata.params.HasParent {
		return nil
	}
	var link ParentLink
	l := im.metadata.locator
	link.Linkage, _ = l.Value(ondisk.LocatorParentLinkage)
	link.Linkage2, _ = l.Value(ondisk.LocatorParentLinkage2)
	for _, key := range ondisk.LocatorPaths {
		if value, ok := l.Value(key); ok {
			link.Paths = append(link.Paths, ParentPath{key, value})
		}
	}
	return &link
}

// FilePlace is where a part of the virtual disk lies: in the file that fd is
// open on, which may be a parent's.
type FilePlace struct {
	Offset, Length int64 // of the virtual disk
	FD             int
	FileOffset     int64
}

// EachPlace calls visit for the parts of a range that lie in files, in the order
// of the disk; what reads zero is left out. The places stay what they are until
// visit returns; it must not call the image. [errors.ErrUnsupported] says that
// a file has no descriptor.
func (im *Image) EachPlace(off, n int64, visit func(FilePlace) error) error {
	im = im.head()
	pin := im.pins.enter()
	defer im.pins.leave(pin)
	err := im.usable(false)
	if err == nil {
		err = im.checkRange(off, n)
	}
	for end := off + n; err == nil && off < end; {
		p, findErr := im.find(off, end-off)
		if findErr != nil {
			return fmt.Errorf("%s: map at %#x: %w", im.name, off, findErr)
		}
		if p.layer != nil {
			d, ok := p.layer.payloadFile().(interface{ Descriptor() (fd, align int) })
			if !ok {
				return fmt.Errorf("%s: the file has no descriptor: %w", p.layer.name, errors.ErrUnsupported)
			}
			fd, _ := d.Descriptor()
			err = visit(FilePlace{off, p.n, fd, p.off})
		}
		off += p.n
	}
	return err
}
