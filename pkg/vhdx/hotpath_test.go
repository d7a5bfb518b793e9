package vhdx_test

import (
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// Serving a request must not need the memory that it may be there to free.
func TestHotPathAllocatesNothing(t *testing.T) {
	im := open(t, create(t, vhdx.CreateOptions{Size: 64 * mib, BlockSize: mib}), vhdx.OpenOptions{})
	defer closeImage(t, im)
	p := make([]byte, 8192)
	if _, err := im.WriteAt(p, 0); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func(){
		"pin": func() {
			if _, pin, ok := im.Pin(true, 4096, 4096); ok {
				im.Unpin(pin)
			}
		},
		"write": func() { _, _ = im.WriteAt(p[:4096], 4096) },
		"read":  func() { _, _ = im.ReadAt(p[:4096], 4096) },
	} {
		if n := testing.AllocsPerRun(100, f); n >= 1 { // the bounce buffer of direct I/O comes from a pool
			t.Errorf("%s: %v allocations a request", name, n)
		}
	}
}

func BenchmarkPin(b *testing.B) {
	path := b.TempDir() + "/disk.vhdx"
	if _, err := vhdx.Create(path, vhdx.CreateOptions{Size: 64 * mib, BlockSize: mib}); err != nil {
		b.Fatal(err)
	}
	im, err := vhdx.OpenPath(path, vhdx.OpenOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = im.Close() }()
	if _, err := im.WriteAt(make([]byte, 4096), 0); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		_, pin, ok := im.Pin(true, 4096, 4096)
		if !ok {
			b.Fatal("not pinned")
		}
		im.Unpin(pin)
	}
}
