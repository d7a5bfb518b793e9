package vhdx_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

// chain makes layers 0 to n-1 with random content, all of it durable, without
// cuts. The top's disk then gets some bytes more, or fewer.
func (w *world) chain(n int, more int64) error {
	w.quiet = true
	defer func() { w.quiet = false }()
	r := rand.New(rand.NewPCG(w.seed, 5))
	if err := w.create("layer-0", vhdx.CreateOptions{Size: 6*mib + 4096, BlockSize: mib}); err != nil {
		return err
	}
	im, err := w.open()
	if err != nil {
		return err
	}
	for i := range n {
		if i > 0 {
			err = errors.Join(err, w.rotate(im, i, nil))
		}
		for range 3 {
			err = errors.Join(err, w.write(im, r))
		}
	}
	if more != 0 && err == nil {
		c := w.model.Resize(im.Size() + more)
		err = im.Resize(im.Size()+more, vhdx.ResizeOptions{CutData: true})
		c.Done(err)
		err = errors.Join(err, w.write(im, r))
	}
	return errors.Join(err, w.close(im))
}

func (w *world) close(im *vhdx.Image) error {
	done := w.model.Flush()
	err := im.Close()
	done(err)
	return err
}

// file returns a file in use.
func (w *world) file(name string) worldFile {
	f := w.files[name]
	f.Reopen()
	return worldFile{f, w.step}
}

// merging merges the top of a chain into its parent. The top shows the same at
// each step, and where it was cut the merge can be done again.
func (w *world) merging() error {
	if err := w.chain(3, []int64{0, -2*mib - 512, 3*mib + 1024, -mib / 2}[w.seed%4]); err != nil {
		return err
	}
	w.journal = nil
	cuts := 0
	w.changed = func(files memParents, _ string) error {
		if cuts++; cuts%12 > 0 {
			return nil
		}
		return w.mergeAgain(files)
	}
	below := memParents{"layer-0": w.files["layer-0"]}
	o := vhdx.MergeOptions{Parents: below, CutData: true}.Like(w.opts)
	if err := vhdx.MergeOn(context.Background(), w.file("layer-2"), w.file("layer-1"), o); err != nil {
		return err
	}
	return errors.Join(w.failed, w.shows(w.files["layer-1"], below))
}

// mergeAgain merges in what a cut has left.
func (w *world) mergeAgain(files memParents) error {
	child, parent := files["layer-2"].Clone(), files["layer-1"].Clone()
	if err := vhdx.MergeOn(context.Background(), child, parent, vhdx.MergeOptions{Parents: files, CutData: true}); err != nil {
		return fmt.Errorf("merge again: %w", err)
	}
	return w.shows(parent, files)
}

// shows: an image shows what the model says.
func (w *world) shows(f *vhdxtest.File, parents memParents) error {
	im, err := vhdx.Open(f.Clone(), vhdx.OpenOptions{ReadOnly: true, Parents: parents})
	if err != nil {
		return err
	}
	err = readEach(im, w.model.Touched(readSize), func(p []byte, off int64) error { return w.model.CheckCut(p, off, nil) })
	return errors.Join(err, w.model.CheckSize(im.Size()), im.Close())
}

// replacing collapses two layers beside a chain and puts its head on the
// result, with a journal, between writes.
func (w *world) replacing() error {
	if err := w.chain(4, 0); err != nil {
		return err
	}
	merged := vhdxtest.NewFile("merged")
	w.files["merged"] = merged
	cuts := 0
	w.changed = func(files memParents, _ string) error {
		if cuts++; cuts%20 > 0 {
			return nil
		}
		return w.collapseAgain(files)
	}
	like := w.opts // its test switches are the collapse's
	like.ReadOnly, like.Parents = true, memParents(w.files)
	top, err := vhdx.Open(w.files["layer-2"].Clone(), like)
	if err != nil {
		return err
	}
	o := vhdx.CollapseOptions{Layers: 2, RelativePath: "layer-0"}.Step(2 * mib)
	if err := errors.Join(top.CollapseOn(context.Background(), worldFile{merged, w.step}, o), top.Close(), w.failed); err != nil {
		return err
	}
	w.changed = func(memParents, string) error { return nil }
	im, err := w.open()
	if err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(w.seed, 6))
	for i := range 4 {
		err = errors.Join(err, w.write(im, r))
		if i == 1 {
			err = errors.Join(err, im.ReplaceParent(vhdx.ParentChange{RelativePath: "merged"}))
		}
		if i == 2 {
			err = errors.Join(err, w.flush(im))
		}
	}
	delete(w.files, "layer-1")
	delete(w.files, "layer-2")
	return errors.Join(err, w.write(im, r), w.close(im), w.failed)
}

// collapseAgain goes on with what a cut has left of a collapse.
func (w *world) collapseAgain(files memParents) error {
	merged := files["merged"].Clone()
	if _, err := vhdxtest.Headers(merged); err != nil {
		return nil // its creation was cut: the name is not there yet
	}
	top, err := vhdx.Open(files["layer-2"].Clone(), vhdx.OpenOptions{ReadOnly: true, Parents: files})
	if err != nil {
		return err
	}
	o := vhdx.CollapseOptions{Layers: 2, RelativePath: "layer-0"}.Step(mib)
	if err := errors.Join(top.CollapseOn(context.Background(), merged, o), top.Close()); err != nil {
		return fmt.Errorf("collapse again: %w", err)
	}
	with := memParents{"layer-0": files["layer-0"], "merged": merged, "layer-2": merged}
	return w.shows(files["layer-3"], with)
}

func TestMergeCrash(t *testing.T)    { crashWorld(t, (*world).merging) }
func TestCollapseCrash(t *testing.T) { crashWorld(t, (*world).replacing) }

func crashWorld(t *testing.T, run func(*world) error) {
	skipSlowRace(t)
	seeds := uint64(4)
	if testing.Short() {
		seeds = 1
	}
	judged := 0
	for seed := range seeds {
		w, err := newWorld(seed + 1)
		if err == nil {
			w.images = 3
			err = run(w)
		}
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		judged += w.judged
	}
	t.Logf("%d images", judged)
}
