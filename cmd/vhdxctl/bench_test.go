package main

import (
	"path/filepath"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// Requests stay on the disk, however far they step.
func TestBenchPlace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if _, err := vhdx.Create(path, vhdx.CreateOptions{Size: 64<<40 - 512}); err != nil {
		t.Fatal(err)
	}
	im, err := vhdx.OpenPath(path, vhdx.OpenOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	for _, o := range []benchOptions{
		{size: 4096, step: 4096},
		{size: 1 << 20, step: 1<<62 + 512, offset: 1<<62 + 1024},
		{size: 64 << 20, step: 512},
	} {
		b := &bench{im: im, o: o}
		for _, n := range []int64{0, 1, 2, 1 << 30, 1<<62 + 7} {
			if off := b.place(n); off < 0 || off%512 != 0 || off > im.Size()-int64(o.size) {
				t.Errorf("%+v: request %d at %#x", o, n, off)
			}
		}
		if o.step == o.size && b.place(3) != 3*int64(o.size) {
			t.Errorf("%+v: request 3 at %#x", o, b.place(3))
		}
	}
}
