package pool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// Range is a part of a snapshot's disk, which has Disk bytes.
type Range struct {
	Offset, Length int64
	Disk           int64
}

// Allocated calls fn, in ascending order, for each part of a snapshot's disk from
// off on that may hold anything but zeros, and returns the disk's size. The layers
// stay as they are until it returns. ErrNoSnapshot, [vhdx.ErrOutOfRange].
func (s *Set) Allocated(ctx context.Context, snapshot string, off int64, fn func(Range) error) (size int64, err error) {
	o, err := s.outline(snapshot)
	if err != nil {
		return 0, err
	}
	defer o.Close()
	size = o.Size()
	err = o.Allocated(ctx, off, inRanges(size, fn))
	if err != nil {
		err = fmt.Errorf("map snapshot %s: %w", snapshot, err)
	}
	return size, err
}

// Delta calls fn, in ascending order, for each part of target's disk from off on
// where it may differ from base, and returns the size of target's disk. What
// base's disk lacks counts as different. Either may be the older; a snapshot of
// a clone, and one of what it was made of, will do as long as the clone stands
// on that. ErrNoSnapshot, [vhdx.ErrOutOfRange], [vhdx.ErrUnrelated].
func (s *Set) Delta(ctx context.Context, base, target string, off int64, fn func(Range) error) (size int64, err error) {
	fail := func(err error) error {
		if errors.Is(err, vhdx.ErrUnrelated) {
			err = fmt.Errorf("%w; make a full backup", err)
		}
		return fmt.Errorf("compare snapshot %s with %s: %w", target, base, err)
	}
	b, err := s.outline(base)
	if err != nil {
		return 0, fail(err)
	}
	defer b.Close()
	t, err := s.outline(target)
	if err != nil {
		return 0, fail(err)
	}
	defer t.Close()
	size = t.Size()
	if err = t.Changed(ctx, b, off, inRanges(size, fn)); err != nil {
		return size, fail(err)
	}
	return size, nil
}

func inRanges(size int64, fn func(Range) error) func(off, n int64) error {
	return func(off, n int64) error { return fn(Range{Offset: off, Length: n, Disk: size}) }
}

// outline opens the layer that a snapshot is. Between the look into the record
// and the open a rebuild may have put another in its place: then that is taken.
func (s *Set) outline(snapshot string) (*vhdx.Outline, error) {
	p, _, err := s.ofSnapshot(snapshot)
	if err != nil {
		return nil, err
	}
	image := ""
	for {
		_, l, lookErr := p.layerOf(snapshot)
		switch {
		case lookErr != nil:
			return nil, lookErr
		case l.Image == image:
			return nil, fmt.Errorf("open snapshot %s: %w", snapshot, err)
		}
		image = l.Image
		var o *vhdx.Outline
		o, err = p.openOutline(image)
		if err == nil || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrBusy) {
			return o, err
		}
	}
}

// openOutline is openLayer for the tables alone.
func (p *Pool) openOutline(image string) (*vhdx.Outline, error) {
	f, err := p.openFrozen(image)
	if err != nil {
		return nil, err
	}
	return vhdx.OpenOutline(f, imagesOf{p})
}

// openFrozen opens the file of a frozen image, locked against its removal.
func (p *Pool) openFrozen(image string) (vhdx.File, error) {
	f, err := p.tree.Open(imagePath(image), os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	osf, err := vhdx.NewOSFile(f, vhdx.FileOptions{ReadOnly: true})
	if err != nil {
		f.Close()
		if errors.Is(err, vhdx.ErrInUse) {
			err = fmt.Errorf("%w: %w", ErrBusy, err) // it is about to be removed, or was frozen just now
		}
		return nil, err
	}
	return osf, nil
}
