package vhdx

import (
	"math/rand/v2"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// The list against a map of single MiB: nothing is handed out twice, nothing
// is lost, neighbours are one range, and a block that fits anywhere is found.
func TestFreeList(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		var f freeList
		free := map[int64]bool{}
		var held []extent
		for range 3000 {
			if r.IntN(2) == 0 && len(held) > 0 || len(held) > 300 {
				i := r.IntN(len(held))
				e := held[i]
				held[i] = held[len(held)-1]
				held = held[:len(held)-1]
				f.put(e)
				markMiB(t, free, e, true)
				continue
			}
			size := int64(1) << r.IntN(6) * ondisk.MiB
			off, ok := f.take(size)
			if ok != fitsMiB(free, size) {
				t.Fatalf("seed %d: %#x bytes taken: %v", seed, size, ok)
			}
			e := extent{off, size}
			if ok {
				markMiB(t, free, e, false)
			} else {
				e.off = int64(10000+len(held)*100+r.IntN(3)*5000) * ondisk.MiB
				if overlapsAny(held, e) || overlapsFree(free, e) {
					continue
				}
			}
			held = append(held, e)
		}
		checkFreeList(t, &f, free)
	}
}

func markMiB(t *testing.T, free map[int64]bool, e extent, to bool) {
	t.Helper()
	for at := e.off; at < e.end(); at += ondisk.MiB {
		if free[at] == to {
			t.Fatalf("%#x is free: %v, twice", at, to)
		}
		if to {
			free[at] = true
		} else {
			delete(free, at)
		}
	}
}

func fitsMiB(free map[int64]bool, size int64) bool {
	for at := range free {
		n := int64(0)
		for n < size && free[at+n] {
			n += ondisk.MiB
		}
		if n >= size {
			return true
		}
	}
	return false
}

func overlapsAny(held []extent, e extent) bool {
	for _, h := range held {
		if h.off < e.end() && e.off < h.end() {
			return true
		}
	}
	return false
}

func overlapsFree(free map[int64]bool, e extent) bool {
	for at := e.off; at < e.end(); at += ondisk.MiB {
		if free[at] {
			return true
		}
	}
	return false
}

func checkFreeList(t *testing.T, f *freeList, free map[int64]bool) {
	t.Helper()
	total := int64(0)
	for off, length := range f.lengths {
		for at := off; at < off+length; at += ondisk.MiB {
			if !free[at] {
				t.Fatalf("%#x is in the list and not free", at)
			}
		}
		if f.starts[off+length] != off || free[off-ondisk.MiB] || free[off+length] {
			t.Fatalf("range %#x, %#x bytes: not joined with its neighbour", off, length)
		}
		total += length
	}
	if total != f.total || total != int64(len(free))*ondisk.MiB {
		t.Fatalf("%#x bytes in ranges, %#x counted, %#x free", total, f.total, int64(len(free))*ondisk.MiB)
	}
	if f.queued > 2*len(f.lengths)+65 {
		t.Fatalf("%d entries queued for %d ranges", f.queued, len(f.lengths))
	}
}

// A million scattered ranges: the time of a block is that of ten ranges, give
// or take the caches.
func BenchmarkFreeList(b *testing.B) {
	for name, n := range map[string]int64{"10": 10, "1M": 1_000_000} {
		b.Run(name, func(b *testing.B) {
			var f freeList
			for i := range n {
				f.put(extent{(2*i + 1) * ondisk.MiB, ondisk.MiB})
			}
			for b.Loop() {
				off, ok := f.take(ondisk.MiB)
				if !ok {
					b.Fatal("nothing free")
				}
				f.put(extent{off, ondisk.MiB})
			}
		})
	}
}
