package vhdx_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

func create(t *testing.T, o vhdx.CreateOptions) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.vhdx")
	if _, err := vhdx.Create(path, o); err != nil {
		t.Fatalf("create: %v", err)
	}
	return path
}

func open(t *testing.T, path string, o vhdx.OpenOptions) *vhdx.Image {
	t.Helper()
	im, err := vhdx.OpenPath(path, o)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return im
}

func closeImage(t *testing.T, im *vhdx.Image) {
	t.Helper()
	if err := im.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
}

// verify compares the whole virtual disk with what it should hold.
func verify(t *testing.T, im *vhdx.Image, want []byte) {
	t.Helper()
	got := make([]byte, im.Size())
	if n, err := im.ReadAt(got, 0); err != nil || n != len(got) {
		t.Fatalf("read %d bytes: %d, %v", len(got), n, err)
	}
	if !bytes.Equal(got, want) {
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("byte %#x is %#x, want %#x", i, got[i], want[i])
			}
		}
	}
}

func TestWriteReadReopen(t *testing.T) {
	for name, o := range map[string]vhdx.CreateOptions{
		"dynamic":     {Size: 20*mib + 512, BlockSize: mib, LogicalSectorSize: 512},
		"dynamic 4k":  {Size: 20*mib + 4096, BlockSize: 2 * mib, LogicalSectorSize: 4096},
		"fixed":       {Size: 6*mib + 512, BlockSize: mib, Fixed: true},
		"large block": {Size: 40 * mib, BlockSize: 32 * mib},
	} {
		t.Run(name, func(t *testing.T) {
			path := create(t, o)
			want := make([]byte, o.Size)
			rng := rand.New(rand.NewPCG(1, 2))
			for round := range 4 {
				im := open(t, path, vhdx.OpenOptions{GrowthStep: 4 * mib})
				sector := int64(im.LogicalSectorSize())
				for i := range 40 {
					n := (1 + rng.Int64N(600)) * sector
					off := rng.Int64N((o.Size-n)/sector) * sector
					p := make([]byte, n)
					for j := range p {
						p[j] = byte(i + round + j/512)
					}
					if _, err := im.WriteAt(p, off); err != nil {
						t.Fatalf("write: %v", err)
					}
					copy(want[off:], p)
					if i%7 == 0 {
						if err := im.Flush(); err != nil {
							t.Fatalf("flush: %v", err)
						}
					}
					if i%11 == 0 {
						z := rng.Int64N(n/sector) * sector
						if err := im.WriteZeroes(off, z); err != nil {
							t.Fatalf("write zeroes: %v", err)
						}
						clear(want[off : off+z])
					}
				}
				verify(t, im, want)
				closeImage(t, im)
				im = open(t, path, vhdx.OpenOptions{ReadOnly: true, RefuseDirty: true})
				verify(t, im, want)
				closeImage(t, im)
			}
		})
	}
}

// The file as it is on the medium after a flush, while the image is open.
func TestDirtyLogIsReplayed(t *testing.T) {
	path := create(t, vhdx.CreateOptions{Size: 64 * mib, BlockSize: mib})
	im := open(t, path, vhdx.OpenOptions{})
	want := make([]byte, im.Size())
	for i := range 50 {
		off := int64(i) * mib
		p := bytes.Repeat([]byte{byte(i + 1)}, 4096)
		if _, err := im.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
		copy(want[off:], p)
		if err := im.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	dirty := filepath.Join(t.TempDir(), "dirty.vhdx")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dirty, data, 0o600); err != nil {
		t.Fatal(err)
	}
	closeImage(t, im)

	if _, err := vhdx.OpenPath(dirty, vhdx.OpenOptions{RefuseDirty: true}); !errors.Is(err, vhdx.ErrLogReplayRequired) {
		t.Fatalf("open refusing dirty: %v", err)
	}
	ro := open(t, dirty, vhdx.OpenOptions{ReadOnly: true})
	verify(t, ro, want)
	closeImage(t, ro)
	rw := open(t, dirty, vhdx.OpenOptions{})
	if rw.Info().Replay.Entries == 0 {
		t.Fatal("nothing was replayed")
	}
	verify(t, rw, want)
	closeImage(t, rw)
	ro = open(t, dirty, vhdx.OpenOptions{ReadOnly: true, RefuseDirty: true})
	verify(t, ro, want)
	closeImage(t, ro)
}

func TestGrow(t *testing.T) {
	for name, o := range map[string]vhdx.CreateOptions{
		"dynamic": {Size: 5 * mib, BlockSize: mib},
		"fixed":   {Size: 5 * mib, BlockSize: mib, Fixed: true},
	} {
		t.Run(name, func(t *testing.T) {
			path := create(t, o)
			im := open(t, path, vhdx.OpenOptions{})
			p := bytes.Repeat([]byte{0x5a}, int(3*mib))
			if _, err := im.WriteAt(p, mib); err != nil {
				t.Fatal(err)
			}
			want := append(append(make([]byte, mib), p...), make([]byte, 9*mib+512-4*mib)...)
			if err := im.Grow(9*mib + 512); err != nil {
				t.Fatalf("grow: %v", err)
			}
			verify(t, im, want)
			if err := im.Grow(mib); !errors.Is(err, vhdx.ErrInvalid) {
				t.Fatalf("shrink: %v", err)
			}
			closeImage(t, im)
			im = open(t, path, vhdx.OpenOptions{})
			verify(t, im, want)
			closeImage(t, im)
		})
	}
}

// A BAT region of 1 MiB holds 131,041 blocks of 1 MiB at 512-byte sectors.
func TestGrowMovesBAT(t *testing.T) {
	path := create(t, vhdx.CreateOptions{Size: 1024 * mib, BlockSize: mib})
	im := open(t, path, vhdx.OpenOptions{})
	at := []int64{0, 700 * mib, 1023 * mib}
	for _, off := range at {
		if _, err := im.WriteAt(bytes.Repeat([]byte{7}, 4096), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := im.Grow(300 << 30); err != nil {
		t.Fatalf("grow: %v", err)
	}
	at = append(at, 299<<30)
	if _, err := im.WriteAt(bytes.Repeat([]byte{7}, 4096), 299<<30); err != nil {
		t.Fatal(err)
	}
	closeImage(t, im)
	im = open(t, path, vhdx.OpenOptions{RefuseDirty: true})
	for _, off := range at {
		got := make([]byte, 8192)
		if _, err := im.ReadAt(got, off); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, append(bytes.Repeat([]byte{7}, 4096), make([]byte, 4096)...)) {
			t.Fatalf("wrong content at %#x", off)
		}
	}
	closeImage(t, im)
}

func TestSteadyStateCostsOneSync(t *testing.T) {
	path := create(t, vhdx.CreateOptions{Size: 4 << 30, BlockSize: mib})
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	of, err := vhdx.NewOSFile(f, vhdx.FileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	im, err := vhdx.Open(of, vhdx.OpenOptions{GrowthStep: 2 << 30})
	if err != nil {
		t.Fatal(err)
	}
	p := bytes.Repeat([]byte{1}, 4096)
	write := func(block int) {
		if _, err := im.WriteAt(p, int64(block)*mib); err != nil {
			t.Fatal(err)
		}
		if err := im.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	write(0)
	before := of.Syncs()
	for i := range 1000 {
		write(i + 1)
	}
	const growths, laps = 1, 1000*8192/int(mib) + 1 // 8 KiB of log a flush
	if got := int(of.Syncs() - before); got > 1000+growths+laps {
		t.Fatalf("%d syncs for 1000 flushes that allocate, %d growth, %d laps of the log", got, growths, laps)
	}
	closeImage(t, im)
}
