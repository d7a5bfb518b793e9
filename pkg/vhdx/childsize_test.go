package vhdx_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

// resize gives the open top another size. Data refuses a smaller one first.
func (l *layers) resize(im *vhdx.Image, size int64) error {
	data := size < int64(len(l.model)) && !allZero(l.model[size:])
	if data {
		if err := im.Resize(size, vhdx.ResizeOptions{}); !errors.Is(err, vhdx.ErrDataBeyondEnd) {
			return fmt.Errorf("resize to %#x, with data beyond it: %w", size, err)
		}
	}
	if err := im.Resize(size, vhdx.ResizeOptions{CutData: data}); err != nil {
		return err
	}
	model := make([]byte, size)
	copy(model, l.model)
	l.model = model
	return nil
}

// A differencing image whose disk becomes larger and smaller, on parents of any
// size, shows zeros in what is new and never what its parent has there, nor
// what it had itself.
func TestChildResizes(t *testing.T) {
	seeds := uint64(20)
	if testing.Short() {
		seeds = 5
	}
	for seed := range seeds {
		if err := resizeRandomChild(seed); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

func resizeRandomChild(seed uint64) error {
	r := rand.New(rand.NewPCG(seed, 21))
	l, err := randomLayers(r, 2+r.IntN(3))
	if err != nil {
		return err
	}
	for range 3 {
		im, err := l.open()
		if err != nil {
			return err
		}
		for range 6 {
			size := mib + r.Int64N(5*mib/512)*512
			if r.IntN(4) == 0 {
				size = (1 + r.Int64N(6)) * mib
			}
			if err = l.resize(im, size); err != nil {
				break
			}
			for range r.IntN(4) {
				err = errors.Join(err, l.change(im, r))
			}
			if err = errors.Join(err, l.verify(im)); err != nil {
				break
			}
		}
		if err := errors.Join(err, im.Close(), checkClean(l.top.Clone())); err != nil {
			return err
		}
		if im, err = l.open(); err != nil {
			return err
		}
		if err := errors.Join(l.verify(im), im.Close()); err != nil {
			return fmt.Errorf("reopened: %w", err)
		}
		if r.IntN(2) == 0 {
			if err := l.child(vhdx.ChildOptions{BlockSize: mib << r.IntN(3)}); err != nil {
				return err
			}
		}
	}
	return nil
}

// A child that shrinks by whole chunks gives up their sector bitmaps, and a
// later growth takes none of their old content up again.
func TestChildLosesChunks(t *testing.T) {
	dir := t.TempDir()
	parent, path := filepath.Join(dir, "parent"), filepath.Join(dir, "child")
	const size = 9*gib + 4096
	if _, err := vhdx.Create(parent, vhdx.CreateOptions{Size: size, BlockSize: 2 * mib}); err != nil {
		t.Fatal(err)
	}
	im := open(t, parent, vhdx.OpenOptions{GrowthStep: mib})
	data := fillRandom(1, 64*kib)
	places := []int64{mib, 3*gib + mib, 5 * gib, 8*gib + 7*512}
	for _, off := range places {
		_, err := im.WriteAt(data, off)
		must(t, err)
	}
	closeImage(t, im)
	_, err := vhdx.CreateChild(path, parent, vhdx.ChildOptions{BlockSize: mib})
	must(t, err)
	o := vhdx.OpenOptions{GrowthStep: mib, Parents: vhdx.ParentsIn(dir)}
	im = open(t, path, o)
	for _, off := range places {
		_, err := im.WriteAt(data[:512], off+4096)
		must(t, err)
	}
	must(t, im.Resize(3*gib+mib+2048, vhdx.ResizeOptions{CutData: true}))
	closeImage(t, im)
	im = open(t, path, o)
	if n := im.Info().AllocatedBlocks; n != 2 {
		t.Errorf("%d blocks have space, 2 are left of the disk", n)
	}
	must(t, im.Grow(size))
	got := make([]byte, len(data))
	for i, off := range places {
		_, err := im.ReadAt(got, off)
		must(t, err)
		want := make([]byte, len(data))
		switch i {
		case 0:
			copy(want, data)
			copy(want[4096:], data[:512])
		case 1:
			copy(want, data[:2048])
		}
		if !bytes.Equal(got, want) {
			t.Errorf("at %#x the disk shows what it did before", off)
		}
	}
	closeImage(t, im)
	checkSpotless(t, path)
}

// Growing and shrinking a child of a larger parent under I/O. Run it with -race.
func TestChildResizesUnderIO(t *testing.T) {
	dir := t.TempDir()
	parent, path := filepath.Join(dir, "parent"), filepath.Join(dir, "child")
	if _, err := vhdx.Create(parent, vhdx.CreateOptions{Size: 32 * mib, BlockSize: mib}); err != nil {
		t.Fatal(err)
	}
	im := open(t, parent, vhdx.OpenOptions{})
	_, err := im.WriteAt(bytes.Repeat([]byte{0xee}, int(32*mib)), 0)
	must(t, err)
	closeImage(t, im)
	const least = 9*mib + 512
	_, err = vhdx.CreateChild(path, parent, vhdx.ChildOptions{Size: least, BlockSize: 2 * mib})
	must(t, err)
	im = open(t, path, vhdx.OpenOptions{Parents: vhdx.ParentsIn(dir), GrowthStep: 4 * mib})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for writer := range int64(4) {
		wg.Go(func() {
			p, got := bytes.Repeat([]byte{byte(writer + 1)}, 4096), make([]byte, 4096)
			for i := int64(0); ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				off := (i*7%32)*mib + writer*4096
				if _, err := im.WriteAt(p, off); err != nil && !errors.Is(err, vhdx.ErrOutOfRange) {
					t.Errorf("write: %v", err)
				}
				off = min(least+writer*4096+i*7%23*mib, 31*mib)
				n, err := im.ReadAt(got, off)
				if err != nil && !errors.Is(err, vhdx.ErrOutOfRange) && n == 0 {
					continue // at the end
				}
				if bytes.IndexByte(got[:n], 0xee) >= 0 {
					t.Errorf("the parent shows at %#x", off)
				}
				if i%16 == 0 {
					if err := im.Flush(); err != nil {
						t.Errorf("flush: %v", err)
					}
				}
			}
		})
	}
	for round := range int64(8) {
		must(t, im.Grow((31-round)*mib+1024))
		must(t, im.Resize(least, vhdx.ResizeOptions{CutData: true}))
	}
	close(stop)
	wg.Wait()
	must(t, im.Grow(31*mib))
	want := make([]byte, 31*mib)
	_, err = im.ReadAt(want, 0)
	must(t, err)
	closeImage(t, im)
	checkSpotless(t, path)
	raw := filepath.Join(dir, "raw")
	must(t, os.WriteFile(raw, want, 0o600))
	ask7z(t, path, raw)
}

// checkSpotless: Check finds nothing to be mended.
func checkSpotless(t *testing.T, path string) {
	t.Helper()
	for _, f := range checkPath(t, path).Findings {
		if f.Severity != vhdx.SeverityNote && f.Code != vhdx.CodeLeakGap {
			t.Errorf("check finds: %v", f)
		}
	}
}

// What other programs leave behind the end of a disk does not show when it
// grows: in the block that it ends in, in bits, and in entries of the last chunk.
func TestGrowOverLeftovers(t *testing.T) {
	base := vhdxtest.NewFile("base.vhdx")
	_, err := vhdx.CreateOn(base, vhdx.CreateOptions{Size: 6 * mib, BlockSize: mib})
	must(t, err)
	im, err := vhdx.Open(base, vhdx.OpenOptions{})
	must(t, err)
	_, err = im.WriteAt(bytes.Repeat([]byte{0xee}, int(6*mib)), 0)
	must(t, errors.Join(err, im.Close()))
	base.Reopen()
	im, err = vhdx.Open(base, vhdx.OpenOptions{ReadOnly: true})
	must(t, err)
	child := vhdxtest.NewFile("child.vhdx")
	_, err = im.CreateChildOn(child, vhdx.ChildOptions{Size: 3*mib + 512*kib, BlockSize: mib, RelativePath: "base.vhdx"})
	must(t, errors.Join(err, im.Close()))
	o := vhdx.OpenOptions{GrowthStep: mib, Parents: oneParent{base}}
	im, err = vhdx.Open(child, o)
	must(t, err)
	_, err = im.WriteAt(bytes.Repeat([]byte{1}, 512), 3*mib)
	must(t, errors.Join(err, im.Close()))
	child.Reopen()

	s := &spoil{t, child}
	rubbish := bytes.Repeat([]byte{0xdd}, int(mib))
	s.put(s.entryAt(3).Offset()+512*kib, rubbish[:512*kib]...)
	s.put(s.entryAt(bitmapEntry).Offset()+3*256+128, rubbish[:128]...)
	end, err := s.Size()
	must(t, err)
	s.put(end, rubbish...)
	s.entry(4, present(end))

	im, err = vhdx.Open(child, o)
	must(t, err)
	must(t, im.Grow(5*mib+512))
	want := make([]byte, 5*mib+512)
	copy(want, bytes.Repeat([]byte{0xee}, int(3*mib+512*kib)))
	copy(want[3*mib:], bytes.Repeat([]byte{1}, 512))
	verify(t, im, want)
	must(t, im.Close())
	must(t, checkClean(child.Clone()))
	child.Reopen()
	im, err = vhdx.Open(child, o)
	must(t, err)
	verify(t, im, want)
	must(t, im.Close())
}
