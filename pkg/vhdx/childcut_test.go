package vhdx_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

// childOf makes a child of an empty image, and tells how it is opened.
func childOf(t *testing.T, size int64, o vhdx.ChildOptions) (*vhdxtest.File, vhdx.OpenOptions) {
	t.Helper()
	base, child := vhdxtest.NewFile("base.vhdx"), vhdxtest.NewFile("child.vhdx")
	_, err := vhdx.CreateOn(base, vhdx.CreateOptions{Size: size, BlockSize: 16 * mib})
	must(t, err)
	im, err := vhdx.Open(base, vhdx.OpenOptions{ReadOnly: true})
	must(t, err)
	o.RelativePath = "base.vhdx"
	_, err = im.CreateChildOn(child, o)
	must(t, errors.Join(err, im.Close()))
	return child, vhdx.OpenOptions{GrowthStep: mib, Parents: oneParent{base}}.NoTimers()
}

// A child that has become smaller has no bits of what it lost (I-SPACE-7), in
// pages that the session has used and in others, and a repair has nothing to do.
func TestShrunkChildHasNoStaleBits(t *testing.T) {
	for name, size := range map[string]int64{"inside a block": 2*mib + 1536, "between blocks": 2 * mib} {
		for _, reopened := range []bool{false, true} {
			child, o := childOf(t, 64*mib, vhdx.ChildOptions{BlockSize: mib})
			im, err := vhdx.Open(child, o)
			must(t, err)
			want := make([]byte, 64*mib)
			for _, off := range []int64{0, 2*mib + 512, 2*mib + 4096, 5 * mib, 20 * mib, 40 * mib, 63 * mib} {
				data := fillRandom(uint64(off), 1024)
				_, err := im.WriteAt(data, off)
				must(t, err)
				copy(want[off:], data)
			}
			if reopened {
				must(t, im.Close())
				child.Reopen()
				im, err = vhdx.Open(child, o)
				must(t, err)
			}
			must(t, im.Resize(size, vhdx.ResizeOptions{CutData: true}))
			verify(t, im, want[:size])
			must(t, im.Close())
			r, err := vhdx.Check(t.Context(), child.Clone(), vhdx.CheckOptions{})
			must(t, err)
			for _, f := range r.Findings {
				if f.Severity != vhdx.SeverityNote {
					t.Errorf("%s, reopened %v: check finds %v", name, reopened, f)
				}
			}
		}
	}
}

// A disk that shrinks by a chunk and grows again does not show what another
// program left behind its last block, wherever the power is cut: the log goes on
// holding pages of the table as they were (I-CHAIN-9, I-SPACE-7).
func TestShrinkOverLeftovers(t *testing.T) {
	const bs, last, foreign = 4 * mib, 1590, 1700
	child, o := childOf(t, 1000*bs, vhdx.ChildOptions{Size: 1600 * bs, BlockSize: bs})
	im, err := vhdx.Open(child, o)
	must(t, err)
	_, err = im.WriteAt(bytes.Repeat([]byte{1}, int(bs)), last*bs)
	must(t, errors.Join(err, im.Close()))
	child.Reopen()
	s := &spoil{t, child}
	end, err := s.Size()
	must(t, err)
	s.put(end, bytes.Repeat([]byte{0xdd}, int(bs))...)
	s.entry(foreign+foreign/1024, present(end))
	must(t, child.Sync())

	im, err = vhdx.Open(child, o)
	must(t, err)
	cuts := 0
	child.OnStep(func(snap *vhdxtest.Snapshot) {
		for i := range 4 {
			cuts++
			file := snap.Image(snap.Plan(1, i))
			cut, err := vhdx.Open(file, o)
			must(t, err)
			if cut.Size() > foreign*bs {
				got := make([]byte, bs)
				_, err = cut.ReadAt(got, foreign*bs)
				must(t, err)
				if !allZero(got) {
					t.Errorf("cut at step %d, image %d: the disk shows what was behind its end", snap.Step(), i)
				}
			}
			must(t, cut.Close())
		}
	})
	must(t, im.Resize(1010*bs, vhdx.ResizeOptions{CutData: true}))
	im.Idle()
	_, err = im.WriteAt(bytes.Repeat([]byte{2}, int(bs)), 0)
	must(t, err)
	must(t, im.Grow(1800*bs))
	must(t, im.Flush())
	must(t, im.Close())
	if cuts == 0 {
		t.Fatal("the power was never cut")
	}
}

// zeroTable is a child whose table says ZERO for each block. What is written
// there is forgotten.
type zeroTable struct {
	*vhdxtest.File
	from, to int64
}

func (z *zeroTable) ReadAt(p []byte, off int64) (int, error) {
	n, err := z.File.ReadAt(p, off)
	for at := max(off, z.from); at < min(off+int64(n), z.to); at += 8 {
		if i := (at - z.from) / 8; (i+1)%4097 != 0 {
			p[at-off] = byte(ondisk.BlockZero)
		}
	}
	return n, err
}

func (z *zeroTable) WriteAt(p []byte, off int64) (int, error) {
	if off >= z.from && off < z.to {
		return len(p), nil
	}
	return z.File.WriteAt(p, off)
}

// A disk with a large table becomes smaller in little memory, however much of
// the table that changes.
func TestShrinkTakesLittleMemory(t *testing.T) {
	skipSlowRace(t)
	const size, blocks = 8 * tib, int64(8 * tib / mib)
	child, o := childOf(t, size, vhdx.ChildOptions{BlockSize: mib})
	s := &spoil{t, child}
	z := &zeroTable{File: child, from: s.region(ondisk.RegionBAT)}
	z.to = z.from + (blocks+blocks/4096)*8
	im, err := vhdx.Open(z, o)
	must(t, err)
	must(t, im.Resize(size-mib, vhdx.ResizeOptions{})) // begins the session
	used := peak(func() { err = im.Resize(gib, vhdx.ResizeOptions{}) })
	must(t, errors.Join(err, im.Close()))
	t.Logf("%d KiB", used>>10)
	if table := uint64(z.to - z.from); used > table { // a copy of all of it, and what the collector leaves
		t.Errorf("%d MiB of memory for a table of %d MiB", used>>20, table>>20)
	}
}
