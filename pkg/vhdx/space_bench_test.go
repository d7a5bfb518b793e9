package vhdx_test

import (
	"path/filepath"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// benchImage is an image of 64 GiB with blocks of 1 MiB on the filesystem.
func benchImage(b *testing.B, growth int64) *vhdx.Image {
	b.Helper()
	path := filepath.Join(b.TempDir(), "disk.vhdx")
	if _, err := vhdx.Create(path, vhdx.CreateOptions{Size: 64 * gib, BlockSize: mib}); err != nil {
		b.Fatal(err)
	}
	im, err := vhdx.OpenPath(path, vhdx.OpenOptions{GrowthStep: growth})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := im.Close(); err != nil {
			b.Error(err)
		}
	})
	return im
}

func benchMust(b *testing.B, err error) {
	if err != nil {
		b.Fatal(err)
	}
}

// New blocks, 4 KiB each, a flush each 16.
func BenchmarkAllocatingWrites(b *testing.B) {
	im := benchImage(b, gib)
	p := make([]byte, 4096)
	for i := int64(0); b.Loop(); i++ {
		_, err := im.WriteAt(p, i%(64<<10)*mib)
		benchMust(b, err)
		if i%16 == 15 {
			benchMust(b, im.Flush())
		}
	}
}

// Blocks are written and discarded, 64 behind, a flush each 16.
func BenchmarkWriteDiscard(b *testing.B) {
	im := benchImage(b, 64*mib)
	p := make([]byte, 4096)
	for i := int64(0); b.Loop(); i++ {
		_, err := im.WriteAt(p, i%(64<<10)*mib)
		benchMust(b, err)
		benchMust(b, im.Discard((i+(64<<10)-64)%(64<<10)*mib, mib))
		if i%16 == 15 {
			benchMust(b, im.Flush())
		}
	}
}

// The same 1,000 blocks are written, then discarded at once.
func BenchmarkDiscard(b *testing.B) {
	im := benchImage(b, gib)
	p := make([]byte, 4096)
	for b.Loop() {
		b.StopTimer()
		for block := range int64(1000) {
			_, err := im.WriteAt(p, block*mib)
			benchMust(b, err)
		}
		benchMust(b, im.Flush())
		b.StartTimer()
		benchMust(b, im.Discard(0, 1000*mib))
		benchMust(b, im.Flush())
	}
}
