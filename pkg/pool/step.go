package pool

import (
	"errors"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/fsx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// stepped is f, with its changes told to the tree's Step where there is one.
func (p *Pool) stepped(f *vhdx.OSFile) vhdx.File {
	if p.tree.Step == nil {
		return f
	}
	return &steppedFile{OSFile: f, step: p.tree.Step}
}

type steppedFile struct {
	*vhdx.OSFile
	step func(op, path string) error
}

func (f *steppedFile) WriteAt(b []byte, off int64) (int, error) {
	if err := f.step("write image", f.Name()); err != nil {
		return 0, err
	}
	return f.OSFile.WriteAt(b, off)
}

func (f *steppedFile) Truncate(size int64) error {
	if err := f.step("truncate image", f.Name()); err != nil {
		return err
	}
	return f.OSFile.Truncate(size)
}

func (f *steppedFile) Allocate(off, length int64) error {
	if err := f.step("allocate image", f.Name()); err != nil {
		return err
	}
	return f.OSFile.Allocate(off, length)
}

func (f *steppedFile) Sync() error {
	switch err := f.step("sync image", f.Name()); {
	case errors.Is(err, fsx.ErrSkip):
		return nil
	case err != nil:
		return err
	}
	return f.OSFile.Sync()
}
