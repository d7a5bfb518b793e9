package vhdx_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

// randomLayers makes a chain of random layers.
func randomLayers(r *rand.Rand, depth int) (*layers, error) {
	l, err := newLayers(vhdx.CreateOptions{Size: 2*mib + r.Int64N(1024)*4096, BlockSize: mib << r.IntN(3)})
	for n := 0; n < depth && err == nil; n++ {
		if n > 0 {
			o := vhdx.ChildOptions{BlockSize: mib << r.IntN(3)}
			if r.IntN(3) == 0 {
				o.Size = 2*mib + r.Int64N(1024)*4096
			}
			err = l.child(o)
		}
		if err == nil {
			err = l.session(r)
		}
	}
	return l, err
}

// What is collapsed, wholly or down to some layer and after any number of
// interruptions, shows what the chain does and has its top's identity.
func TestCollapse(t *testing.T) {
	seeds := uint64(20)
	if testing.Short() {
		seeds = 5
	}
	for seed := range seeds {
		if err := collapseRandom(seed); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

var errInterrupted = errors.New("interrupted on purpose")

func collapseRandom(seed uint64) error {
	r := rand.New(rand.NewPCG(seed, 11))
	l, err := randomLayers(r, 2+r.IntN(4))
	if err != nil {
		return err
	}
	o := vhdx.CollapseOptions{Layers: r.IntN(len(l.files) + 1), BlockSize: mib << r.IntN(3)}.Step(mib + 4096)
	o.RelativePath = fmt.Sprintf("layer-%d", len(l.files)-1-o.Layers)
	file := vhdxtest.NewFile("collapsed")
	var top *vhdx.Image
	for again := true; again; {
		l.top.Reopen()
		ro := l.options()
		ro.ReadOnly = true
		if top, err = vhdx.Open(l.top, ro); err != nil {
			return err
		}
		left := r.IntN(4) // steps to be done before the interruption
		o.Progress = func(int64, int64) error {
			if left--; left < 0 {
				return errInterrupted
			}
			return nil
		}
		file.Reopen()
		err = top.CollapseOn(context.Background(), file, o)
		again = errors.Is(err, errInterrupted)
		if err := errors.Join(top.Close()); err != nil {
			return err
		}
		if err != nil && !again {
			return err
		}
	}
	a, err := vhdxtest.Headers(l.top.Clone())
	if err != nil {
		return err
	}
	b, err := vhdxtest.Headers(file.Clone())
	if err != nil {
		return err
	}
	if a[0].DataWriteGUID != b[0].DataWriteGUID || b[0].DataWriteGUID != b[1].DataWriteGUID || !b[0].Clean() {
		return fmt.Errorf("headers are %+v, the top's %+v", b, a)
	}
	l.top = file
	file.Reopen()
	ro := l.options()
	ro.ReadOnly = true
	im, err := vhdx.Open(file, ro)
	if err != nil {
		return err
	}
	merged := o.Layers == 0 || o.Layers >= len(l.files)
	if im.Info().HasParent == merged {
		err = fmt.Errorf("%d of %d layers merged, HasParent is %v", o.Layers, len(l.files), !merged)
	}
	return errors.Join(err, l.verify(im), im.Close())
}

// The whole of it on a filesystem: layers are collapsed beside a live image,
// which is then put on the result, and the old ones go.
func TestCollapseUnderLiveImage(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	in := vhdx.ParentsIn(dir)
	_, err := vhdx.Create(path("0"), vhdx.CreateOptions{Size: 16 * mib, BlockSize: mib})
	must(t, err)
	im := open(t, path("0"), vhdx.OpenOptions{Parents: in})
	want := fillRandom(1, 16*mib)
	for n := 1; n <= 4; n++ {
		copy(want[int64(n)*3*mib/2:], fillRandom(uint64(n), mib))
		_, err := im.WriteAt(want, 0)
		must(t, err)
		_, err = im.CreateChild(path(fmt.Sprint(n)), vhdx.ChildOptions{})
		must(t, err)
		must(t, im.RotatePath(path(fmt.Sprint(n)), nil))
	}
	must(t, vhdx.Collapse(t.Context(), path("merged"), path("3"), in, vhdx.CollapseOptions{Layers: 2}))
	copy(want[5*mib:], fillRandom(77, 4096))
	_, err = im.WriteAt(want[5*mib:5*mib+4096], 5*mib)
	must(t, err)
	before := im.Info().DataWriteGUID
	must(t, im.ReplaceParent(vhdx.ParentChange{Path: path("merged")}))
	verify(t, im, want)
	if now := im.Info(); now.DataWriteGUID != before || len(im.Layers()) != 4 {
		t.Fatalf("DataWriteGuid %s, was %s; %d layers", now.DataWriteGUID, before, len(im.Layers()))
	}
	for _, name := range []string{"2", "3"} {
		if n := descriptorsOf(t, path(name)); n != 0 {
			t.Fatalf("%s is still open %d times", name, n)
		}
	}
	if err := im.ReplaceParent(vhdx.ParentChange{Path: path("1")}); !errors.Is(err, vhdx.ErrParentMismatch) {
		t.Fatalf("another image as the parent: %v", err)
	}
	if err := im.ReplaceParent(vhdx.ParentChange{Path: filepath.Join(filepath.Dir(dir), "x")}); !errors.Is(err, vhdx.ErrParentRefused) {
		t.Fatalf("a parent outside: %v", err)
	}
	verify(t, im, want)
	closeImage(t, im)
	im = open(t, path("4"), vhdx.OpenOptions{Parents: in, ReadOnly: true})
	verify(t, im, want)
	closeImage(t, im)
	if err := vhdx.Collapse(t.Context(), path("merged"), path("4"), in, vhdx.CollapseOptions{}); err == nil {
		t.Fatal("an existing image was replaced")
	}
}

// A child merged into its parent, of any size: the parent has the child's size,
// shows what it did, and takes its place below the child's child.
func TestMerge(t *testing.T) {
	refused := 0
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 12))
		l, err := randomLayers(r, 2+r.IntN(2))
		must(t, err)
		before := l.model
		must(t, l.child(vhdx.ChildOptions{Size: mib + r.Int64N(int64(len(before))/512)*512, BlockSize: mib << r.IntN(2)}))
		must(t, l.session(r))
		cuts := len(l.model) < len(before) && !allZero(before[len(l.model):])
		n := len(l.files)
		child, parent := l.files[fmt.Sprintf("layer-%d", n-1)], l.files[fmt.Sprintf("layer-%d", n-2)]
		merge := func(o vhdx.MergeOptions) error {
			child.Reopen()
			parent.Reopen()
			return vhdx.MergeOn(t.Context(), child, parent, o)
		}
		if cuts {
			refused++
			sums := [2]uint64{child.Hash(), parent.Hash()}
			if err := merge(vhdx.MergeOptions{Parents: l.files}); !errors.Is(err, vhdx.ErrDataBeyondEnd) {
				t.Fatalf("seed %d: a merge that loses data of the parent: %v", seed, err)
			}
			if sums != [2]uint64{child.Hash(), parent.Hash()} {
				t.Fatalf("seed %d: a merge that was refused changed something", seed)
			}
		}
		must(t, merge(vhdx.MergeOptions{Parents: l.files, CutData: cuts}))
		for _, f := range []*vhdxtest.File{child, parent} {
			l.top = f
			l.top.Reopen()
			o := l.options()
			o.ReadOnly, o.RefuseDirty = true, true
			im, err := vhdx.Open(f, o)
			must(t, err)
			must(t, errors.Join(l.verify(im), im.Close()))
		}
		must(t, checkClean(parent.Clone()))
		a, err := vhdxtest.Headers(child.Clone())
		must(t, err)
		b, err := vhdxtest.Headers(parent.Clone())
		must(t, err)
		if a[0].DataWriteGUID != b[0].DataWriteGUID {
			t.Fatalf("the child's DataWriteGuid is %x, the parent's %x", a[0].DataWriteGUID, b[0].DataWriteGUID)
		}
	}
	if refused == 0 {
		t.Error("no merge would have lost data")
	}
}

// cancelling is a file whose read of much at once gives up, and counts what is
// read of it afterwards.
type cancelling struct {
	vhdx.File
	cancel context.CancelFunc
	reads  int
}

func (c *cancelling) ReadAt(p []byte, off int64) (int, error) {
	if c.reads > 0 || len(p) == int(mib) && off >= 4*mib {
		c.reads++
		c.cancel()
	}
	return c.File.ReadAt(p, off)
}

// The search for data that a merge would cut off ends when it is told to, also
// inside a block, and nothing has changed.
func TestMergeIsInterruptedWhileItLooks(t *testing.T) {
	base, child := vhdxtest.NewFile("base.vhdx"), vhdxtest.NewFile("child.vhdx")
	_, err := vhdx.CreateOn(base, vhdx.CreateOptions{Size: 64 * mib, BlockSize: 32 * mib})
	must(t, err)
	im, err := vhdx.Open(base, vhdx.OpenOptions{})
	must(t, err)
	_, err = im.WriteAt(make([]byte, 32*mib), 32*mib)
	must(t, errors.Join(err, im.Close()))
	base.Reopen()
	im, err = vhdx.Open(base, vhdx.OpenOptions{ReadOnly: true})
	must(t, err)
	_, err = im.CreateChildOn(child, vhdx.ChildOptions{Size: mib, BlockSize: mib, RelativePath: "base.vhdx"})
	must(t, errors.Join(err, im.Close()))
	base.Reopen()
	child.Reopen()
	sums := [2]uint64{child.Hash(), base.Hash()}
	ctx, cancel := context.WithCancel(t.Context())
	parent := &cancelling{File: base, cancel: cancel}
	err = vhdx.MergeOn(ctx, child, parent, vhdx.MergeOptions{Parents: oneParent{base}})
	if !errors.Is(err, context.Canceled) || parent.reads == 0 {
		t.Fatalf("after %d reads: %v", parent.reads, err)
	}
	if parent.reads > 4 {
		t.Errorf("%d reads after it was to end", parent.reads)
	}
	if sums != [2]uint64{child.Hash(), base.Hash()} {
		t.Error("a merge that was interrupted while it looked changed something")
	}
}
