package pool

import "github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"

// stepped is f, with its changes told to the tree's Step where there is one.
func (p *Pool) stepped(f *vhdx.OSFile) vhdx.File {
	if p.tree.Step == nil {
		return f
	}
	return &steppedFile{OSFile: f, step: p.tree.Step}
}

type steppedFile struct {
	*vhdx.OSFile
	step func(op, path string)
}

func (f *steppedFile) WriteAt(b []byte, off int64) (int, error) {
	f.step("write image", f.Name())
	return f.OSFile.WriteAt(b, off)
}

func (f *steppedFile) Truncate(size int64) error {
	f.step("truncate image", f.Name())
	return f.OSFile.Truncate(size)
}

func (f *steppedFile) Sync() error {
	f.step("sync image", f.Name())
	return f.OSFile.Sync()
}
