package vhdx_test

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// Random reads of 4 KiB from a chain of 64, each layer with writes all over
// the disk, against the same disk in one child of one parent. The target is a
// ratio of 0.9: run with -bench ChainReads.
func BenchmarkChainReads(b *testing.B) {
	const size, writes = 256 * mib, 400
	for _, whole := range []bool{false, true} {
		name := map[bool]string{false: "partial blocks", true: "whole blocks"}[whole]
		b.Run(name, func(b *testing.B) {
			dir := b.TempDir()
			shallow := benchChain(b, dir, "shallow", size, 2, 64*writes/2, whole)
			deep := benchChain(b, dir, "deep", size, 64, writes, whole)
			defer func() { _ = shallow.Close(); _ = deep.Close() }()
			var took [2]time.Duration
			p := make([]byte, 4096)
			began := time.Now()
			for _, im := range []*vhdx.Image{shallow, deep} { // the bits are read when they are first asked for
				for off := int64(0); off < size; off += mib {
					if _, err := im.ReadAt(p, off); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.Logf("first look at each MiB: %v", time.Since(began))
			for round := 0; b.Loop(); round++ {
				for i, im := range []*vhdx.Image{shallow, deep} {
					r := rand.New(rand.NewPCG(uint64(round), 1))
					began := time.Now()
					for range 1000 {
						if _, err := im.ReadAt(p, r.Int64N(size/4096)*4096); err != nil {
							b.Fatal(err)
						}
					}
					took[i] += time.Since(began)
				}
			}
			b.ReportMetric(float64(took[0])/float64(took[1]), "deep/shallow")
			b.ReportMetric(float64(took[1].Nanoseconds())/float64(b.N)/1000, "ns/read")
		})
	}
}

// benchChain makes a chain that writes the same number of pieces over all its
// layers, and opens it.
func benchChain(b *testing.B, dir, name string, size int64, depth, writes int, whole bool) *vhdx.Image {
	b.Helper()
	r := rand.New(rand.NewPCG(3, 4))
	layer := func(n int) string { return filepath.Join(dir, fmt.Sprintf("%s-%d.vhdx", name, n)) }
	o := vhdx.OpenOptions{Parents: vhdx.ParentsIn(dir)}
	p := make([]byte, mib)
	for n := range depth {
		var err error
		if n == 0 {
			_, err = vhdx.Create(layer(0), vhdx.CreateOptions{Size: size, BlockSize: mib})
		} else {
			_, err = vhdx.CreateChild(layer(n), layer(n-1), vhdx.ChildOptions{BlockSize: mib})
		}
		if err != nil {
			b.Fatal(err)
		}
		im, err := vhdx.OpenPath(layer(n), o)
		if err != nil {
			b.Fatal(err)
		}
		each, unit := writes, int64(4096)
		if whole {
			each, unit = int(size/mib)/depth, mib
		}
		for i := range each {
			p[0] = byte(n + 1)
			off := r.Int64N(size/unit) * unit
			if whole {
				off = int64(n+i*depth) * unit
			}
			if _, err := im.WriteAt(p[:unit], off); err != nil {
				b.Fatal(err)
			}
		}
		if err := im.Close(); err != nil {
			b.Fatal(err)
		}
	}
	o.ReadOnly = true
	im, err := vhdx.OpenPath(layer(depth-1), o)
	if err != nil {
		b.Fatal(err)
	}
	return im
}
