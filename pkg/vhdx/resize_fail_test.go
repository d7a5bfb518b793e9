package vhdx_test

import (
	"bytes"
	"errors"
	"runtime"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

// While a disk is about to shrink, a request up to the new end covers no block
// that goes on behind it: should the shrinking fail, the rest is there again
// (I-SPACE-7).
func TestFailedShrinkGivesTheRestBack(t *testing.T) {
	const half = 2*mib + mib/2
	zero := bytes.Repeat([]byte{0}, int(mib/2))
	for name, tt := range map[string]struct {
		layers int // a child holds nothing of the block
		do     func(im *vhdx.Image) error
		want   []byte
	}{
		"discard":            {1, func(im *vhdx.Image) error { return im.Discard(2*mib, mib/2) }, zero},
		"zeroes":             {1, func(im *vhdx.Image) error { return im.WriteZeroes(2*mib, mib/2) }, zero},
		"discard in a child": {2, func(im *vhdx.Image) error { return im.Discard(2*mib, mib/2) }, zero},
		"write to a child": {2, func(im *vhdx.Image) error {
			_, err := im.WriteAt(bytes.Repeat([]byte{3}, int(mib/2)), 2*mib)
			return err
		}, bytes.Repeat([]byte{3}, int(mib/2))},
	} {
		t.Run(name, func(t *testing.T) {
			im, file := failingShrink(t, tt.layers)
			_, pin, ok := im.Pin(true, 0, 512) // shrinking waits for it
			if !ok {
				t.Fatal("no pin")
			}
			resized := make(chan error)
			go func() { resized <- im.Resize(half, vhdx.ResizeOptions{CutData: true}) }()
			for im.Size() != half {
				runtime.Gosched()
			}
			must(t, tt.do(im))
			for _, kind := range []vhdxtest.Kind{vhdxtest.Write, vhdxtest.Punch, vhdxtest.Zero} {
				file.Inject(vhdxtest.Fault{Kind: kind, N: 1, Err: errSpoilt, Stay: true})
			}
			im.Unpin(pin)
			if err := <-resized; !errors.Is(err, errSpoilt) {
				t.Fatalf("resize: %v", err)
			}
			file.ClearFaults()
			if size := im.Size(); size != 4*mib {
				t.Fatalf("size %#x", size)
			}
			got := make([]byte, mib)
			_, err := im.ReadAt(got, 2*mib)
			must(t, err)
			if !bytes.Equal(got[:mib/2], tt.want) {
				t.Error("the request has been forgotten")
			}
			if !bytes.Equal(got[mib/2:], bytes.Repeat([]byte{2}, int(mib/2))) {
				t.Error("what follows the end that the disk did not get is gone")
			}
			_ = im.Close()
		})
	}
}

// failingShrink is an image of 4 MiB whose third block is full.
func failingShrink(t *testing.T, layers int) (*vhdx.Image, *vhdxtest.File) {
	t.Helper()
	file, o := vhdxtest.NewFile("disk.vhdx"), vhdx.OpenOptions{GrowthStep: mib}.NoTimers()
	_, err := vhdx.CreateOn(file, vhdx.CreateOptions{Size: 4 * mib, BlockSize: mib})
	must(t, err)
	im, err := vhdx.Open(file, o)
	must(t, err)
	_, err = im.WriteAt(bytes.Repeat([]byte{2}, int(mib)), 2*mib)
	must(t, err)
	if layers > 1 {
		must(t, im.Close())
		base := file
		base.Reopen()
		im, err = vhdx.Open(base, vhdx.OpenOptions{ReadOnly: true})
		must(t, err)
		file = vhdxtest.NewFile("child.vhdx")
		_, err = im.CreateChildOn(file, vhdx.ChildOptions{BlockSize: mib, RelativePath: "base.vhdx"})
		must(t, errors.Join(err, im.Close()))
		o.Parents = oneParent{base}
		im, err = vhdx.Open(file, o)
		must(t, err)
	}
	_, err = im.WriteAt(bytes.Repeat([]byte{1}, int(mib)), 0)
	must(t, errors.Join(err, im.Flush()))
	return im, file
}
