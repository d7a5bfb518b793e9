package vhdx_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

// frozen is an image of a chain, what it shows, and which sectors of 512 bytes
// somebody has touched in it.
type frozen struct {
	file    *vhdxtest.File
	model   []byte
	touched []bool
}

// history is a chain all of whose images are kept.
type history struct {
	layers
	r       *rand.Rand
	sector  int64
	touched []bool
	all     []*frozen
	in      []*frozen // those that are in the chain still
}

const testSector = 512

// touch notes that whole logical sectors may have been changed.
func (h *history) touch(off, end int64) {
	off, end = off/h.sector*h.sector, (end+h.sector-1)/h.sector*h.sector
	if n := end / testSector; n > int64(len(h.touched)) {
		h.touched = append(h.touched, make([]bool, n-int64(len(h.touched)))...)
	}
	for i := off / testSector; i < end/testSector; i++ {
		h.touched[i] = true
	}
}

// change is that of layers, and notes what it touches.
func (h *history) change(im *vhdx.Image) error {
	size, r := int64(len(h.model)), h.r
	if r.IntN(8) == 0 {
		to := mib + r.Int64N(4*mib/4096)*4096
		h.touch(min(size, to), max(size, to))
		return h.resize(im, to)
	}
	off := r.Int64N(size)
	n := min(1+r.Int64N([]int64{512, 9000, 2 << 20}[r.IntN(3)]), size-off)
	if r.IntN(2) == 0 {
		off = off / h.sector * h.sector
		n = min((n+h.sector-1)/h.sector*h.sector, size-off)
	}
	h.touch(off, off+n)
	switch r.IntN(8) {
	case 0:
		clear(h.model[off : off+n])
		return im.WriteZeroes(off, n)
	case 1, 2:
		clear(h.model[off : off+n])
		return im.Discard(off, n)
	}
	for i := range h.model[off : off+n] {
		h.model[off+int64(i)] = byte(r.Uint32())
	}
	_, err := im.WriteAt(h.model[off:off+n], off)
	return err
}

// freeze ends the top, which a child of any block size follows.
func (h *history) freeze(child bool) error {
	im, err := h.open()
	if err != nil {
		return err
	}
	for range h.r.IntN(7) {
		if err = h.change(im); err != nil {
			break
		}
	}
	if err := errors.Join(err, im.Close()); err != nil {
		return err
	}
	s := &frozen{h.top, slices.Clone(h.model), h.touched}
	h.all, h.in, h.touched = append(h.all, s), append(h.in, s), nil
	if !child {
		return nil
	}
	return h.child(vhdx.ChildOptions{BlockSize: mib << h.r.IntN(3)})
}

// collapse merges some images of the chain, in whose place the result comes,
// under the name of the topmost of them.
func (h *history) collapse() error {
	top := h.r.IntN(len(h.in))
	n := 1 + h.r.IntN(top+1)
	below := top - n
	s := h.in[top]
	o := vhdx.CollapseOptions{Layers: n, BlockSize: mib << h.r.IntN(2)}
	if below < 0 {
		o.Layers = 0
	} else {
		o.RelativePath = h.in[below].file.Name()
	}
	s.file.Reopen()
	im, err := vhdx.Open(s.file.Clone(), vhdx.OpenOptions{ReadOnly: true, Parents: h.files})
	if err != nil {
		return err
	}
	f := vhdxtest.NewFile(s.file.Name())
	if err := errors.Join(im.CollapseOn(context.Background(), f, o), im.Close()); err != nil {
		return err
	}
	merged := &frozen{f, s.model, nil}
	for _, l := range h.in[below+1 : top+1] {
		for i, t := range l.touched {
			for len(merged.touched) <= i {
				merged.touched = append(merged.touched, false)
			}
			merged.touched[i] = merged.touched[i] || t
		}
	}
	h.all, h.files[f.Name()] = append(h.all, merged), f
	h.in = slices.Replace(h.in, below+1, top+1, merged)
	return nil
}

func (h *history) outline(s *frozen) (*vhdx.Outline, error) {
	return vhdx.OpenOutline(s.file.Clone(), h.files)
}

// marks makes a bit for each sector of what a walk visits, and checks that the
// ranges ascend, do not touch and lie in the disk.
func marks(size, from int64, walk func(visit func(off, n int64) error) error) ([]bool, error) {
	got := make([]bool, (size+testSector-1)/testSector)
	last := int64(-1)
	err := walk(func(off, n int64) error {
		if off <= last || n <= 0 || off < from || off+n > size {
			return fmt.Errorf("range of %#x at %#x, after %#x, from %#x on a disk of %#x", n, off, last, from, size)
		}
		for i := off / testSector; i <= (off+n-1)/testSector; i++ {
			got[i] = true
		}
		last = off + n
		return nil
	})
	return got, err
}

// differs compares a sector of two disks; what one lacks differs.
func differs(a, b []byte, sector int64) bool {
	off, end := sector*testSector, (sector+1)*testSector
	part := func(p []byte) []byte { return p[min(off, int64(len(p))):min(end, int64(len(p)))] }
	return !slices.Equal(part(a), part(b))
}

// checkDelta: every sector that differs is named. With exact, none is that
// nobody has touched in a layer between.
func (h *history) checkDelta(target, base *frozen, between []*frozen, exact bool) error {
	t, err := h.outline(target)
	if err != nil {
		return err
	}
	defer t.Close()
	b, err := h.outline(base)
	if err != nil {
		return err
	}
	defer b.Close()
	size := t.Size()
	from := int64(0)
	if h.r.IntN(2) == 0 {
		from = h.r.Int64N(size + 1)
	}
	got, err := marks(size, from, func(visit func(off, n int64) error) error {
		return t.Changed(context.Background(), b, from, visit)
	})
	if err != nil {
		return err
	}
	for i := from / testSector; i < int64(len(got)); i++ {
		if differs(target.model, base.model, i) && !got[i] {
			return fmt.Errorf("sector %d differs and is not named", i)
		}
		touched := (i+1)*testSector > b.Size()
		for _, l := range between {
			touched = touched || i < int64(len(l.touched)) && l.touched[i]
		}
		if exact && got[i] && !touched {
			return fmt.Errorf("sector %d is named, and nobody has touched it", i)
		}
	}
	return nil
}

func (h *history) checkAllocated(s *frozen) error {
	o, err := h.outline(s)
	if err != nil {
		return err
	}
	defer o.Close()
	from := h.r.Int64N(o.Size() + 1)
	got, err := marks(o.Size(), from, func(visit func(off, n int64) error) error {
		return o.Allocated(context.Background(), from, visit)
	})
	if err != nil {
		return err
	}
	for i := (from + testSector - 1) / testSector; i < int64(len(got)); i++ {
		if part := s.model[i*testSector : min((i+1)*testSector, int64(len(s.model)))]; !got[i] && !allZero(part) {
			return fmt.Errorf("sector %d holds data and is not named", i)
		}
	}
	return nil
}

// What Changed and Allocated name covers all that differs, or is not zero, in
// chains that have been written, discarded, resized and merged in every way; and
// what no layer has touched is not named (I-DIFF-1, I-DIFF-2).
func TestChanges(t *testing.T) {
	seeds := uint64(24)
	if testing.Short() {
		seeds = 5
	}
	for seed := range seeds {
		if err := randomChanges(seed); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

func randomChanges(seed uint64) error {
	r := rand.New(rand.NewPCG(seed, 31))
	sector := []int64{512, 512, 4096}[r.IntN(3)]
	l, err := newLayers(vhdx.CreateOptions{Size: 2*mib + r.Int64N(512)*4096, BlockSize: mib << r.IntN(2), LogicalSectorSize: int(sector)})
	if err != nil {
		return err
	}
	h := &history{layers: *l, r: r, sector: sector}
	depth := 3 + r.IntN(5)
	for n := range depth {
		if err := h.freeze(n < depth-1); err != nil {
			return fmt.Errorf("layer %d: %w", n, err)
		}
	}
	for range 3 {
		for i := range h.in {
			for j := range h.in {
				// Both ways: the grown part of the one that is asked is its own.
				lo, hi := min(i, j), max(i, j)
				if err := h.checkDelta(h.in[i], h.in[j], h.in[lo+1:hi+1], true); err != nil {
					return fmt.Errorf("image %d against %d of %d: %w", i, j, len(h.in), err)
				}
			}
		}
		for i, s := range h.all {
			base := h.all[r.IntN(len(h.all))]
			if err := h.checkDelta(s, base, nil, false); err != nil && !errors.Is(err, vhdx.ErrUnrelated) {
				return fmt.Errorf("image %d that has been merged, or against one: %w", i, err)
			}
			if err := h.checkAllocated(s); err != nil {
				return fmt.Errorf("image %d: %w", i, err)
			}
		}
		if err := h.collapse(); err != nil {
			return fmt.Errorf("collapse: %w", err)
		}
	}
	return nil
}

func TestChangesRefuses(t *testing.T) {
	one, err := newLayers(vhdx.CreateOptions{Size: 2 * mib, BlockSize: mib})
	must(t, err)
	two, err := newLayers(vhdx.CreateOptions{Size: 2 * mib, BlockSize: mib})
	must(t, err)
	must(t, one.child(vhdx.ChildOptions{}))
	a, err := vhdx.OpenOutline(one.top.Clone(), one.files)
	must(t, err)
	defer a.Close()
	b, err := vhdx.OpenOutline(two.top.Clone(), two.files)
	must(t, err)
	defer b.Close()
	none := func(int64, int64) error { t.Error("something was visited"); return nil }
	for _, tt := range []struct {
		name string
		err  error
		want error
	}{
		{"unrelated", a.Changed(t.Context(), b, 0, none), vhdx.ErrUnrelated},
		{"before the start", a.Allocated(t.Context(), -1, none), vhdx.ErrOutOfRange},
		{"behind the end", a.Changed(t.Context(), a, 2*mib+1, none), vhdx.ErrOutOfRange},
		{"at the end", a.Allocated(t.Context(), 2*mib, none), nil},
		{"itself", a.Changed(t.Context(), a, 0, none), nil},
	} {
		if !errors.Is(tt.err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, tt.err, tt.want)
		}
	}
	orphan, err := vhdx.OpenOutline(one.top.Clone(), memParents{})
	must(t, err)
	defer orphan.Close()
	if err := orphan.Allocated(t.Context(), 0, none); !errors.Is(err, vhdx.ErrParentMissing) {
		t.Errorf("without its parent: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.Allocated(ctx, 0, none); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// allocated is how many bytes do takes from the heap, given back or not.
func allocated(do func()) int64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return int64(after.TotalAlloc - before.TotalAlloc)
}
