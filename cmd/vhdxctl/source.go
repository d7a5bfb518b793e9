package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/disk"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// source is a disk that a command reads.
type source interface {
	disk.Source
	io.Closer
}

// opened is a source and what is known of it.
type opened struct {
	source
	name   string
	format string
	image  *vhdx.Image // nil: raw
	device bool
}

// openSource opens an image, a raw file or a block device for reading.
// format "": by its first bytes.
func (a *app) openSource(path, format string) (opened, error) {
	o := opened{name: path, format: format}
	var err error
	if o.device, err = kindOf(path); err != nil {
		return o, err
	}
	if o.format == "" {
		if o.format, err = probeFile(path); err != nil {
			return o, err
		}
	}
	switch {
	case o.format == formatVHDX:
		if o.image, err = a.openReadOnly(path); err == nil {
			o.source = o.image
		}
	case o.device:
		o.source, err = disk.OpenDevice(path, false)
	default:
		o.source, err = disk.OpenFile(path, false)
	}
	if err != nil {
		return opened{}, err
	}
	return o, nil
}

// openReadOnly opens an image, and the chain it stands on, for reading.
func (a *app) openReadOnly(path string) (*vhdx.Image, error) {
	return a.openImage(path, vhdx.OpenOptions{ReadOnly: true})
}

// openImage opens an image, and its chain from where parents may be.
func (a *app) openImage(path string, o vhdx.OpenOptions) (*vhdx.Image, error) {
	o.Parents = a.parentsOf(path)
	return vhdx.OpenPath(path, o)
}

// parentsOf opens an image's parents from where they may be.
func (a *app) parentsOf(path string) vhdx.ParentOpener {
	if a.parents == "" {
		return vhdx.ParentsIn(filepath.Dir(path))
	}
	return vhdx.ParentsIn(a.parents)
}

func probeFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	format, err := probe(f, path)
	return format, errors.Join(err, f.Close())
}

// sector is the logical sector size a copy of the source should have; 0: any.
func (o opened) sector() int {
	if o.image != nil {
		return o.image.LogicalSectorSize()
	}
	return 0
}

// stdinFile is where standard input can be opened again if it is a file.
const stdinFile = "/proc/self/fd/0"

// stdinIsFile reports whether standard input can be read at any place.
func stdinIsFile() bool {
	st, err := os.Stdin.Stat()
	return err == nil && (st.Mode().IsRegular() || st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0)
}

// readInput returns standard input as a reader that ends with ctx.
func readInput(ctx context.Context) io.Reader {
	r, w := io.Pipe()
	context.AfterFunc(ctx, func() { w.CloseWithError(context.Cause(ctx)) })
	go func() {
		_, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{os.Stdin}, make([]byte, 1<<20))
		w.CloseWithError(err)
	}()
	return r
}

// spool keeps what a pipe delivers in a temporary file without a name.
func spool(r io.Reader) (_ *os.File, err error) {
	f, err := os.CreateTemp("", ".vhdxctl-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if _, err := io.Copy(f, r); err != nil {
		return nil, errors.Join(fmt.Errorf("keep the input in a temporary file: %w", err), f.Close())
	}
	return f, nil
}
