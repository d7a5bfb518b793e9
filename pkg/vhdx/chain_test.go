package vhdx_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

// memParents opens parents by their names, in memory.
type memParents map[string]*vhdxtest.File

func (m memParents) OpenParent(_ string, path vhdx.ParentPath) (vhdx.File, string, error) {
	name := strings.TrimPrefix(path.Value, `.\`)
	if f := m[name]; f != nil && path.Key == "relative_path" {
		return f.Clone(), name, nil
	}
	return nil, name, fs.ErrNotExist
}

// layers is a chain in memory and what its top shows.
type layers struct {
	files memParents
	top   *vhdxtest.File
	model []byte
}

func (l *layers) options() vhdx.OpenOptions {
	return vhdx.OpenOptions{Parents: l.files, GrowthStep: mib}
}

// newLayers begins a chain with an image without a parent.
func newLayers(o vhdx.CreateOptions) (*layers, error) {
	f := vhdxtest.NewFile("layer-0")
	_, err := vhdx.CreateOn(f, o)
	return &layers{files: memParents{"layer-0": f}, top: f, model: make([]byte, o.Size)}, err
}

// child puts a child on the top.
func (l *layers) child(o vhdx.ChildOptions) error {
	ro := l.options()
	ro.ReadOnly = true
	l.top.Reopen()
	im, err := vhdx.Open(l.top, ro)
	if err != nil {
		return err
	}
	f := vhdxtest.NewFile(fmt.Sprintf("layer-%d", len(l.files)))
	o.RelativePath = l.top.Name()
	made, err := im.CreateChildOn(f, o)
	if err := errors.Join(err, im.Close()); err != nil {
		return err
	}
	l.files[f.Name()] = f
	l.top = f
	model := make([]byte, made.Options.Size)
	copy(model, l.model)
	l.model = model
	return nil
}

func (l *layers) open() (*vhdx.Image, error) {
	l.top.Reopen()
	return vhdx.Open(l.top, l.options())
}

// change does something random to the top.
func (l *layers) change(im *vhdx.Image, r *rand.Rand) error {
	size := int64(len(l.model))
	off := r.Int64N(size/512) * 512
	n := min(512*(1+r.Int64N([]int64{1, 16, 300, 4200}[r.IntN(4)])), size-off)
	if r.IntN(6) == 0 { // parts of sectors
		off += r.Int64N(512)
		n = min(1+r.Int64N(n), size-off)
	}
	if bs := im.Info().BlockSize; r.IntN(4) == 0 { // a whole block
		off = off / bs * bs
		n = min(bs, size-off)
	}
	switch r.IntN(8) {
	case 0:
		clear(l.model[off : off+n])
		return im.WriteZeroes(off, n)
	case 1:
		clear(l.model[off : off+n])
		return im.Discard(off, n)
	case 2:
		return im.Flush()
	}
	for i := range l.model[off : off+n] {
		l.model[off+int64(i)] = byte(r.Uint32())
	}
	_, err := im.WriteAt(l.model[off:off+n], off)
	return err
}

func (l *layers) verify(im *vhdx.Image) error {
	if im.Size() != int64(len(l.model)) {
		return fmt.Errorf("size %#x, want %#x", im.Size(), len(l.model))
	}
	got := make([]byte, len(l.model))
	if _, err := im.ReadAt(got, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for off := 0; off < len(got); off += 512 {
		if !bytes.Equal(got[off:off+512], l.model[off:off+512]) {
			return fmt.Errorf("sector at %#x begins with %x, want %x", off, got[off:off+16], l.model[off:off+16])
		}
	}
	return l.verifyExtents(im, got)
}

// verifyExtents: what Resolve says of a disk is what it reads.
func (l *layers) verifyExtents(im *vhdx.Image, want []byte) error {
	var r vhdx.Resolution
	if err := im.Resolve(false, 0, im.Size(), &r); err != nil {
		return err
	}
	defer r.Abort()
	next := int64(0)
	for _, e := range r.Extents {
		if e.Offset != next || e.Length <= 0 {
			return fmt.Errorf("extent %+v does not begin at %#x", e, next)
		}
		next += e.Length
		if e.FileOffset < 0 && !bytes.Equal(want[e.Offset:next], make([]byte, e.Length)) {
			return fmt.Errorf("extent %+v says zeros", e)
		}
		if e.FileOffset >= 0 && e.Layer == 0 {
			got := make([]byte, e.Length)
			if _, err := l.top.ReadAt(got, e.FileOffset); err != nil || !bytes.Equal(got, want[e.Offset:next]) {
				return fmt.Errorf("extent %+v holds something else (%w)", e, err)
			}
		}
	}
	if next != im.Size() {
		return fmt.Errorf("extents end at %#x of %#x", next, im.Size())
	}
	return nil
}

// A chain of any block sizes and virtual sizes reads what was written through
// its heads, sector for sector (I-CHAIN-1).
func TestChainReadsWhatWasWritten(t *testing.T) {
	seeds := uint64(40)
	if testing.Short() {
		seeds = 8
	}
	for seed := range seeds {
		if err := randomChain(seed); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

func randomChain(seed uint64) error {
	r := rand.New(rand.NewPCG(seed, 7))
	sector := []int{512, 512, 4096}[r.IntN(3)]
	size := func() int64 { return 2*mib + r.Int64N(2048)*4096 }
	block := func() int64 { return mib << r.IntN(4) }
	l, err := newLayers(vhdx.CreateOptions{Size: size(), BlockSize: block(), LogicalSectorSize: sector})
	if err != nil {
		return err
	}
	for depth := range 2 + r.IntN(5) {
		if depth > 0 {
			o := vhdx.ChildOptions{BlockSize: block()}
			if r.IntN(3) == 0 {
				o.Size = size()
			}
			if err := l.child(o); err != nil {
				return fmt.Errorf("child %d: %w", depth, err)
			}
		}
		for range 1 + r.IntN(2) {
			if err := l.session(r); err != nil {
				return fmt.Errorf("depth %d: %w", depth, err)
			}
		}
	}
	return nil
}

func (l *layers) session(r *rand.Rand) error {
	im, err := l.open()
	if err != nil {
		return err
	}
	err = l.verify(im)
	for range 12 {
		if err == nil {
			err = l.change(im, r)
		}
	}
	if err == nil {
		err = l.verify(im)
	}
	if err := errors.Join(err, im.Close()); err != nil {
		return err
	}
	l.top.Reopen()
	o := l.options()
	o.ReadOnly, o.RefuseDirty = true, true
	if im, err = vhdx.Open(l.top, o); err != nil {
		return fmt.Errorf("reopen: %w", err)
	}
	return errors.Join(l.verify(im), im.Close())
}
