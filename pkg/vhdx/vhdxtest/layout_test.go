package vhdxtest_test

import (
	"encoding/binary"
	"hash/crc32"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

// image returns a closed image of five blocks of 1 MiB, of which 0 and 3 have
// space: log at 1 MiB, metadata at 2, BAT at 3, payload from 4 on.
func image(t *testing.T) *vhdxtest.File {
	t.Helper()
	f := vhdxtest.NewFile("a.vhdx")
	if _, err := vhdx.CreateOn(f, vhdx.CreateOptions{Size: 5 << 20, BlockSize: 1 << 20}); err != nil {
		t.Fatalf("CreateOn: %v", err)
	}
	im, err := vhdx.Open(f, vhdx.OpenOptions{})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	for _, block := range []int64{0, 3} {
		if _, err := im.WriteAt(make([]byte, 512), block<<20); err != nil {
			t.Fatalf("WriteAt: %v", err)
		}
	}
	if err := im.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	return f.Clone()
}

func TestLayoutOfAnImage(t *testing.T) {
	l, err := vhdxtest.ReadLayout(image(t))
	if err != nil {
		t.Fatalf("ReadLayout: %v", err)
	}
	want := &vhdxtest.Layout{
		Header: l.Header, FileSize: 6 << 20,
		BAT: vhdxtest.Extent{Off: 3 << 20, N: 1 << 20}, Metadata: vhdxtest.Extent{Off: 2 << 20, N: 1 << 20},
		VirtualSize: 5 << 20, BlockSize: 1 << 20, SectorSize: 512,
		Blocks: map[int64]int64{0: 4 << 20, 3: 5 << 20}, Partial: map[int64]int64{}, Bitmaps: map[int64]int64{},
	}
	if diff := cmp.Diff(want, l); diff != "" || l.End() != l.FileSize {
		t.Fatalf("layout ends at %#x: %s", l.End(), diff)
	}
}

func TestLayoutRefuses(t *testing.T) {
	entry := func(f *vhdxtest.File, index int64, e uint64) {
		f.WriteAt(binary.LittleEndian.AppendUint64(nil, e), 3<<20+8*index)
	}
	// patch changes bytes of a checksummed structure and mends its checksum.
	patch := func(f *vhdxtest.File, at, n, off int64, p string) {
		b := make([]byte, n)
		f.ReadAt(b, at)
		copy(b[off:], p)
		clear(b[4:8])
		binary.LittleEndian.PutUint32(b[4:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
		f.WriteAt(b, at)
	}
	for want, damage := range map[string]func(f *vhdxtest.File){
		"only header 1 is valid":                 func(f *vhdxtest.File) { f.WriteAt([]byte("x"), 0x20020) },
		"headers end different":                  func(f *vhdxtest.File) { patch(f, 0x20000, 4096, 16, "x") },
		"region table 2 is not valid":            func(f *vhdxtest.File) { f.WriteAt([]byte("x"), 0x40100) },
		"region tables differ":                   func(f *vhdxtest.File) { patch(f, 0x40000, 0x10000, 0x8000, "x") },
		"share the megabyte at 0x400000":         func(f *vhdxtest.File) { entry(f, 1, 4<<20|6) },
		"and metadata share":                     func(f *vhdxtest.File) { entry(f, 1, 2<<20|6) },
		"beyond the file's end":                  func(f *vhdxtest.File) { entry(f, 1, 6<<20|6) },
		"BAT entry 2 is 0x600002":                func(f *vhdxtest.File) { entry(f, 2, 6<<20|2) },
		"BAT entry 2 is 0x400106: reserved bits": func(f *vhdxtest.File) { entry(f, 2, 4<<20|0x106) },
		"BAT entry 2 is 0x7":                     func(f *vhdxtest.File) { entry(f, 2, 7) },
		"log is not clean": func(f *vhdxtest.File) {
			patch(f, 0x10000, 4096, 48, "guid")
			patch(f, 0x20000, 4096, 48, "guid")
		},
	} {
		f := image(t)
		damage(f)
		if _, err := vhdxtest.ReadLayout(f); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q: %v", want, err)
		}
	}
}

// The watcher knows a page that the log holds from one that it does not.
func TestWatcher(t *testing.T) {
	for want, change := range map[string]func(page []byte){
		"": func([]byte) {},
		"no durable entry of the log holds the page at 0x300000": func(page []byte) { page[100]++ },
	} {
		f := image(t)
		im, err := vhdx.Open(f, vhdx.OpenOptions{GrowthStep: 8 << 20})
		if err != nil {
			t.Fatalf("Open: %v", err)
		}
		if _, err := im.WriteAt(make([]byte, 512), 1<<20); err != nil {
			t.Fatalf("WriteAt: %v", err)
		}
		if err := im.Flush(); err != nil {
			t.Fatalf("Flush: %v", err)
		}
		// The BAT page as it was logged: in its place it still is the old one.
		page := make([]byte, 4096)
		f.ReadAt(page, 3<<20)
		binary.LittleEndian.PutUint64(page[8:], 6<<20|6)
		change(page)
		var got error
		var w vhdxtest.Watcher
		f.OnStep(func(s *vhdxtest.Snapshot) { got = w.Check(s) })
		f.WriteAt(page, 3<<20)
		f.OnStep(nil)
		if want == "" && got != nil || want != "" && (got == nil || !strings.Contains(got.Error(), want)) {
			t.Errorf("want %q: %v", want, got)
		}
		if err := im.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
	}
}
