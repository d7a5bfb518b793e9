package vhdxtest_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

// twin is a plain array beside a File.
type twin struct {
	f     *vhdxtest.File
	bytes []byte
}

// change does one random thing to both.
func (w *twin) change(t *testing.T, r *rand.Rand) {
	t.Helper()
	off, n := r.Int64N(3<<20), 1+r.Int64N([]int64{600, 5000, 1 << 20}[r.IntN(3)])
	var err error
	switch r.IntN(6) {
	case 0:
		size := r.Int64N(4 << 20)
		if size < int64(len(w.bytes)) {
			w.bytes = w.bytes[:size:size]
		}
		w.bytes = append(w.bytes, make([]byte, size-int64(len(w.bytes)))...)
		err = w.f.Truncate(size)
	case 1:
		if end := min(off+n, int64(len(w.bytes))); off < end {
			clear(w.bytes[off:end])
		}
		err = w.f.PunchHole(off, n)
	case 2:
		w.grow(off + n)
		err = w.f.Allocate(off, n)
	default:
		p := make([]byte, n)
		if r.IntN(4) > 0 {
			for i := range p {
				p[i] = byte(r.Uint32())
			}
		}
		w.grow(off + n)
		copy(w.bytes[off:], p)
		_, err = w.f.WriteAt(p, off)
	}
	if err != nil {
		t.Fatalf("change: %v", err)
	}
}

func (w *twin) grow(size int64) {
	if size > int64(len(w.bytes)) {
		w.bytes = append(w.bytes, make([]byte, size-int64(len(w.bytes)))...)
	}
}

func content(t *testing.T, f *vhdxtest.File) []byte {
	t.Helper()
	size, err := f.Size()
	if err != nil {
		t.Fatalf("Size: %v", err)
	}
	p := make([]byte, size)
	if n, err := f.ReadAt(p, 0); int64(n) != size || err != nil && !errors.Is(err, io.EOF) {
		t.Fatalf("ReadAt: %d of %d bytes, %v", n, size, err)
	}
	return p
}

// The file holds what an array would, its clones keep what they had
// (I-TEST-4), and the hash depends on the bytes only (I-TEST-5).
func TestFileIsAnArray(t *testing.T) {
	for seed := range uint64(5) {
		r := rand.New(rand.NewPCG(seed, 1))
		w := twin{f: vhdxtest.NewFile("a")}
		var clones []twin
		for range 60 {
			w.change(t, r)
			if r.IntN(8) == 0 {
				clones = append(clones, twin{w.f.Clone(), bytes.Clone(w.bytes)})
			}
			if r.IntN(4) == 0 && len(clones) > 0 {
				clones[r.IntN(len(clones))].change(t, r)
			}
			if r.IntN(8) == 0 {
				if err := w.f.Sync(); err != nil {
					t.Fatalf("Sync: %v", err)
				}
			}
		}
		for i, w := range append(clones, w) {
			if !bytes.Equal(content(t, w.f), w.bytes) {
				t.Fatalf("seed %d: file %d differs from its array", seed, i)
			}
			fresh := vhdxtest.NewFile("b")
			if _, err := fresh.WriteAt(w.bytes, 0); err != nil || fresh.Hash() != w.f.Hash() {
				t.Fatalf("seed %d: file %d: hash depends on history (%v)", seed, i, err)
			}
			if at := fresh.Difference(w.f, 0); at >= 0 {
				t.Fatalf("seed %d: file %d: Difference finds %#x in equal files", seed, i, at)
			}
			if len(w.bytes) > 0 {
				fresh.WriteAt([]byte{w.bytes[0] ^ 1}, 0)
				if fresh.Hash() == w.f.Hash() || fresh.Difference(w.f, 0) != 0 {
					t.Fatalf("seed %d: file %d: a changed byte changes no hash or is no difference", seed, i)
				}
			}
		}
	}
}

func TestReadPastTheEnd(t *testing.T) {
	f := vhdxtest.NewFile("a")
	f.WriteAt([]byte("abc"), 0)
	p := []byte("xxxxx")
	n, err := f.ReadAt(p, 1)
	if diff := cmp.Diff("bcxxx", string(p)); n != 2 || !errors.Is(err, io.EOF) || diff != "" {
		t.Fatalf("ReadAt: %d, %v, %s", n, err, diff)
	}
}

func TestFaults(t *testing.T) {
	f := vhdxtest.NewFile("a")
	eio := syscall.EIO
	f.Inject(
		vhdxtest.Fault{Kind: vhdxtest.Write, N: 2, Err: eio, Short: 2},
		vhdxtest.Fault{Kind: vhdxtest.Truncate, N: 1, Err: syscall.ENOSPC},
		vhdxtest.Fault{Kind: vhdxtest.Write, N: 1, Err: syscall.ENOSPC, Match: func(off, _ int64) bool { return off >= 100 }, Stay: true},
		vhdxtest.Fault{Kind: vhdxtest.Read, N: 1, Err: eio},
	)
	write := func(p string, off int64, wantN int, want error) {
		t.Helper()
		if n, err := f.WriteAt([]byte(p), off); n != wantN || !errors.Is(err, want) {
			t.Fatalf("WriteAt(%q, %d): %d, %v; want %d, %v", p, off, n, err, wantN, want)
		}
	}
	write("aaaa", 0, 4, nil)
	write("bbbb", 0, 2, eio)
	write("c", 200, 0, syscall.ENOSPC)
	write("c", 200, 0, syscall.ENOSPC)
	if err := f.Truncate(50); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("Truncate: %v", err)
	}
	if _, err := f.ReadAt(make([]byte, 1), 0); !errors.Is(err, eio) {
		t.Fatalf("ReadAt: %v", err)
	}
	if got := string(content(t, f)); got != "bbaa" {
		t.Fatalf("file holds %q", got)
	}
	if left := f.FaultsLeft(); left != 0 {
		t.Fatalf("%d faults have not struck", left)
	}
	counts := []int{f.Count(vhdxtest.Write), f.Count(vhdxtest.Truncate), f.Count(vhdxtest.Sync), f.Step()}
	if diff := cmp.Diff([]int{4, 1, 0, 5}, counts); diff != "" {
		t.Fatalf("counts: %s", diff)
	}
}

func TestDieAt(t *testing.T) {
	f := vhdxtest.NewFile("a")
	f.DieAt(2)
	if _, err := f.WriteAt([]byte("a"), 0); err != nil {
		t.Fatalf("WriteAt: %v", err)
	}
	_, werr := f.WriteAt([]byte("b"), 0)
	_, rerr := f.ReadAt(make([]byte, 1), 0)
	for i, err := range []error{werr, rerr, f.Sync(), f.Truncate(0), f.PunchHole(0, 1), f.Allocate(0, 1)} {
		if !errors.Is(err, vhdxtest.ErrDied) {
			t.Fatalf("operation %d after death: %v", i, err)
		}
	}
	if got := string(content(t, f.Clone())); got != "a" {
		t.Fatalf("file holds %q", got)
	}
}

// images returns the distinct contents that cuts at s may leave.
func images(t *testing.T, s *vhdxtest.Snapshot, plans int) map[string]int {
	t.Helper()
	all := map[string]int{}
	for i := range plans {
		all[string(content(t, s.Image(s.Plan(1, i))))]++
	}
	return all
}

// A successful sync decides what came before it, nothing after (I-TEST-1).
func TestSyncDecides(t *testing.T) {
	f := vhdxtest.NewFile("a")
	f.WriteAt([]byte("old"), 0)
	if err := f.Sync(); err != nil {
		t.Fatalf("Sync: %v", err)
	}
	f.WriteAt([]byte("new"), 0)
	s := f.Snapshot()
	if s.Undecided() != 1 || s.Step() != 3 {
		t.Fatalf("%d undecided at step %d", s.Undecided(), s.Step())
	}
	got := images(t, s, 40)
	if len(got) != 2 || got["old"] == 0 || got["new"] == 0 {
		t.Fatalf("images: %v", got)
	}
	if err := f.Sync(); err != nil {
		t.Fatalf("Sync: %v", err)
	}
	if got := images(t, f.Snapshot(), 3); len(got) != 1 || got["new"] == 0 {
		t.Fatalf("images after sync: %v", got)
	}
}

// After a failed sync nothing decides what it covered; what comes later is
// decided as ever (I-TEST-2).
func TestFailedSyncForgets(t *testing.T) {
	f := vhdxtest.NewFile("a")
	f.Truncate(2)
	f.Sync()
	f.WriteAt([]byte("x"), 0)
	f.Inject(vhdxtest.Fault{Kind: vhdxtest.Sync, N: 1, Err: syscall.EIO})
	if err := f.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("Sync: %v", err)
	}
	f.WriteAt([]byte("y"), 1)
	for range 2 {
		if err := f.Sync(); err != nil {
			t.Fatalf("Sync: %v", err)
		}
	}
	if got := images(t, f.Snapshot(), 40); len(got) != 2 || got["\x00y"] == 0 || got["xy"] == 0 {
		t.Fatalf("images: %#v", got)
	}
	f.WriteAt([]byte("z"), 0)
	f.Sync()
	if got := images(t, f.Snapshot(), 40); len(got) != 1 || got["zy"] == 0 {
		t.Fatalf("images: %#v", got)
	}
}

// Of a write that is under way when a sync begins nothing is known.
func TestSyncAndWriteInFlight(t *testing.T) {
	either := map[bool]bool{}
	for i := range 100000 {
		f := vhdxtest.NewFile("a")
		f.Truncate(1)
		f.Sync()
		both := []func(){func() { f.WriteAt([]byte("x"), 0) }, func() { f.Sync() }}
		var wg sync.WaitGroup
		wg.Go(both[i%2])
		wg.Go(both[1-i%2])
		wg.Wait()
		either[f.Snapshot().Undecided() == 0] = true
		if len(either) == 2 {
			return
		}
	}
	t.Fatalf("only seen: durable = %v", either)
}
