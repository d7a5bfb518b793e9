package vhdx_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

// spoil is an image in memory that a test breaks, or bends, by hand.
type spoil struct {
	t *testing.T
	*vhdxtest.File
}

func newSpoil(t *testing.T, blocks int) *spoil {
	t.Helper()
	f := vhdxtest.NewFile("disk.vhdx")
	if _, err := vhdx.CreateOn(f, vhdx.CreateOptions{Size: 64 * mib, BlockSize: mib, LogicalSectorSize: 512}); err != nil {
		t.Fatal(err)
	}
	s := &spoil{t, f}
	if blocks > 0 {
		im := s.open(vhdx.OpenOptions{})
		for i := range blocks {
			if _, err := im.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, 4096), int64(i)*mib); err != nil {
				t.Fatal(err)
			}
		}
		closeImage(t, im)
		s.Reopen()
	}
	return s
}

func (s *spoil) open(o vhdx.OpenOptions) *vhdx.Image {
	s.t.Helper()
	im, err := vhdx.Open(s.File, o)
	if err != nil {
		s.t.Fatalf("open: %v", err)
	}
	return im
}

func (s *spoil) bytes(off int64, n int) []byte {
	s.t.Helper()
	b := make([]byte, n)
	if _, err := s.ReadAt(b, off); err != nil {
		s.t.Fatal(err)
	}
	return b
}

func (s *spoil) put(off int64, b ...byte) {
	s.t.Helper()
	if _, err := s.WriteAt(b, off); err != nil {
		s.t.Fatal(err)
	}
}

func (s *spoil) header(slot int64, change func(*ondisk.Header)) {
	s.t.Helper()
	off := ondisk.Header1Offset * (slot + 1)
	b := s.bytes(off, ondisk.HeaderSize)
	h, err := ondisk.DecodeHeader(b)
	if err != nil {
		s.t.Fatal(err)
	}
	change(&h)
	h.Encode(b)
	s.put(off, b...)
}

// headers changes both slots.
func (s *spoil) headers(change func(*ondisk.Header)) {
	s.header(0, change)
	s.header(1, change)
}

// regions changes both copies of the region table.
func (s *spoil) regions(change func(*ondisk.RegionTable)) {
	s.t.Helper()
	b := s.bytes(ondisk.RegionTable1Offset, ondisk.RegionTableSize)
	table, err := ondisk.DecodeRegionTable(b)
	if err != nil {
		s.t.Fatal(err)
	}
	change(&table)
	if err := table.Encode(b); err != nil {
		s.t.Fatal(err)
	}
	s.put(ondisk.RegionTable1Offset, b...)
	s.put(ondisk.RegionTable2Offset, b...)
}

func (s *spoil) region(id ondisk.GUID) int64 {
	s.t.Helper()
	table, err := ondisk.DecodeRegionTable(s.bytes(ondisk.RegionTable1Offset, ondisk.RegionTableSize))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, r := range table.Regions {
		if r.ID == id {
			return int64(r.Offset)
		}
	}
	s.t.Fatalf("no region %v", id)
	return 0
}

func (s *spoil) entry(i int64, e ondisk.BATEntry) {
	b := make([]byte, ondisk.BATEntrySize)
	e.Encode(b, 0)
	s.put(s.region(ondisk.RegionBAT)+i*ondisk.BATEntrySize, b...)
}

func (s *spoil) entryAt(i int) ondisk.BATEntry {
	return ondisk.DecodeBATEntry(s.bytes(s.region(ondisk.RegionBAT)+int64(i)*ondisk.BATEntrySize, ondisk.BATEntrySize), 0)
}

var unknown = ondisk.NewGUID()

func TestOpenRefuses(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(s *spoil)
		want  error
		says  string
	}{
		{"a file that is no VHDX", func(s *spoil) { s.put(0, 'x') }, vhdx.ErrNotVHDX, "disk.vhdx"},
		{"both headers torn", func(s *spoil) { s.put(ondisk.Header1Offset+100, 1); s.put(ondisk.Header2Offset+100, 1) }, vhdx.ErrCorrupt, "neither header is valid"},
		{"a later version", func(s *spoil) { s.headers(func(h *ondisk.Header) { h.Version = 2 }) }, vhdx.ErrUnsupported, "version 2"},
		{"equal sequence numbers, other content", func(s *spoil) {
			s.headers(func(h *ondisk.Header) { h.SequenceNumber = 9 })
			s.header(1, func(h *ondisk.Header) { h.FileWriteGUID = unknown })
		}, vhdx.ErrCorrupt, "both headers"},
		{"both region tables bad", func(s *spoil) { s.put(ondisk.RegionTable1Offset+9, 9); s.put(ondisk.RegionTable2Offset+9, 9) }, vhdx.ErrCorrupt, "both copies"},
		{"an unknown required region", func(s *spoil) {
			s.regions(func(r *ondisk.RegionTable) {
				r.Regions = append(r.Regions, ondisk.Region{ID: unknown, Offset: 4 * ondisk.MiB, Length: ondisk.MiB, Required: true})
			})
		}, vhdx.ErrUnsupported, unknown.String()},
		{"no BAT", func(s *spoil) {
			s.regions(func(r *ondisk.RegionTable) {
				for i := range r.Regions {
					if r.Regions[i].ID == ondisk.RegionBAT {
						r.Regions[i].ID, r.Regions[i].Required = unknown, false
					}
				}
			})
		}, vhdx.ErrCorrupt, "no BAT"},
		{"regions that overlap", func(s *spoil) {
			s.regions(func(r *ondisk.RegionTable) { r.Regions[0].Offset = r.Regions[1].Offset })
		}, vhdx.ErrCorrupt, "overlap"},
		{"a log over a region", func(s *spoil) {
			s.headers(func(h *ondisk.Header) { h.LogOffset = uint64(s.region(ondisk.RegionBAT)) })
		}, vhdx.ErrCorrupt, "overlap"},
		{"a BAT beyond the file", func(s *spoil) {
			s.regions(func(r *ondisk.RegionTable) {
				for i := range r.Regions {
					if r.Regions[i].ID == ondisk.RegionBAT {
						r.Regions[i].Offset = 1 << 40
					}
				}
			})
		}, vhdx.ErrCorrupt, "0x10000000000"},
		{"two blocks in one place", func(s *spoil) { s.entry(1, s.entryAt(0)) }, vhdx.ErrCorrupt, "BAT entry 1"},
		{"a block over the log", func(s *spoil) {
			s.entry(0, ondisk.MakeBATEntry(ondisk.BlockFullyPresent, mib))
		}, vhdx.ErrCorrupt, "overlap"},
		{"a block in the header section", func(s *spoil) {
			s.entry(0, ondisk.MakeBATEntry(ondisk.BlockFullyPresent, 0))
		}, vhdx.ErrCorrupt, "without an offset"},
		{"a block beyond the file", func(s *spoil) {
			s.entry(0, ondisk.MakeBATEntry(ondisk.BlockFullyPresent, 1<<40))
		}, vhdx.ErrCorrupt, "beyond"},
		{"a block beyond any file", func(s *spoil) { s.entry(0, ^ondisk.BATEntry(0)&^0xfffff|6) }, vhdx.ErrCorrupt, "beyond"},
		{"reserved bits", func(s *spoil) { s.entry(0, s.entryAt(0)|8) }, vhdx.ErrCorrupt, "reserved"},
		{"state 4", func(s *spoil) { s.entry(0, 4) }, vhdx.ErrCorrupt, "state 4"},
		{"state 7 without a parent", func(s *spoil) { s.entry(0, s.entryAt(0)|7) }, vhdx.ErrCorrupt, "PARTIALLY_PRESENT"},
		{"a bad metadata table", func(s *spoil) { s.put(s.region(ondisk.RegionMetadata), 'M') }, vhdx.ErrCorrupt, "metadata table"},
		{"log GUID set, empty log", func(s *spoil) {
			s.headers(func(h *ondisk.Header) { h.LogGUID = unknown })
		}, vhdx.ErrCorrupt, "no valid sequence"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, readOnly := range []bool{false, true} {
				s := newSpoil(t, 3)
				tt.spoil(s)
				_, err := vhdx.Open(s.File, vhdx.OpenOptions{ReadOnly: readOnly})
				if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), "disk.vhdx") {
					t.Fatalf("read-only %v: got %v, want %q and %v", readOnly, err, tt.says, tt.want)
				}
			}
		})
	}
}

// What other implementations write and a strict reader would refuse (the
// format allows it or nobody can be harmed).
func TestOpenAccepts(t *testing.T) {
	tests := []struct {
		name string
		bend func(s *spoil)
	}{
		{"regions not marked required (QEMU)", func(s *spoil) {
			s.regions(func(r *ondisk.RegionTable) {
				for i := range r.Regions {
					r.Regions[i].Required = false
				}
			})
		}},
		{"identical headers (Disk2vhd)", func(s *spoil) {
			b := s.bytes(ondisk.Header1Offset, ondisk.HeaderSize)
			s.put(ondisk.Header2Offset, b...)
		}},
		{"headers that differ in DataWriteGuid (QEMU)", func(s *spoil) {
			s.header(1, func(h *ondisk.Header) { h.DataWriteGUID = unknown })
		}},
		{"one header torn", func(s *spoil) { s.put(ondisk.Header1Offset+100, 1) }},
		{"copy 1 of the region table bad", func(s *spoil) { s.put(ondisk.RegionTable1Offset+9, 9) }},
		{"an unknown optional region", func(s *spoil) {
			if err := s.Truncate(32 * mib); err != nil {
				s.t.Fatal(err)
			}
			s.put(20*mib, 'k', 'e', 'p', 't')
			s.regions(func(r *ondisk.RegionTable) {
				r.Regions = append(r.Regions, ondisk.Region{ID: unknown, Offset: 20 * ondisk.MiB, Length: ondisk.MiB})
			})
		}},
		{"ZERO with an offset", func(s *spoil) { s.entry(40, ondisk.MakeBATEntry(ondisk.BlockZero, 5*mib)) }},
		{"UNMAPPED without an offset (Windows)", func(s *spoil) { s.entry(40, ondisk.MakeBATEntry(ondisk.BlockUnmapped, 0)) }},
		{"UNMAPPED that owns space", func(s *spoil) {
			if err := s.Truncate(32 * mib); err != nil {
				s.t.Fatal(err)
			}
			s.put(25*mib, 'o', 'l', 'd')
			s.entry(40, ondisk.MakeBATEntry(ondisk.BlockUnmapped, 25*mib))
		}},
		{"UNMAPPED of draft 0.95", func(s *spoil) { s.entry(40, 5) }},
		{"a file of unaligned length (Disk2vhd)", func(s *spoil) {
			size, err := s.Size()
			if err == nil {
				err = s.Truncate(size + 512)
			}
			if err != nil {
				s.t.Fatal(err)
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSpoil(t, 3)
			tt.bend(s)
			want := make([]byte, 64*mib)
			for i := range 3 {
				copy(want[int64(i)*mib:], bytes.Repeat([]byte{byte(i + 1)}, 4096))
			}
			im := s.open(vhdx.OpenOptions{ReadOnly: true})
			verify(t, im, want)
			closeImage(t, im)
			s.Reopen()
			im = s.open(vhdx.OpenOptions{})
			for _, block := range []int64{2, 20, 40} {
				p := bytes.Repeat([]byte{byte(block)}, 512)
				if _, err := im.WriteAt(p, block*mib+512); err != nil {
					t.Fatal(err)
				}
				copy(want[block*mib+512:], p)
			}
			closeImage(t, im)
			s.Reopen()
			im = s.open(vhdx.OpenOptions{RefuseDirty: true})
			verify(t, im, want)
			closeImage(t, im)
			s.Reopen()
			if tt.name == "an unknown optional region" && string(s.bytes(20*mib, 4)) != "kept" {
				t.Fatal("the region has been touched")
			}
		})
	}
}

// The last block's end may be missing; it reads zero, and no other block may
// be given the space that is its own (old QEMU images).
func TestCutLastBlock(t *testing.T) {
	f := vhdxtest.NewFile("disk.vhdx")
	if _, err := vhdx.CreateOn(f, vhdx.CreateOptions{Size: 64 * mib, BlockSize: 4 * mib}); err != nil {
		t.Fatal(err)
	}
	s := &spoil{t, f}
	im := s.open(vhdx.OpenOptions{})
	want := make([]byte, 64*mib)
	write := func(off int64, b byte, n int64) {
		t.Helper()
		p := bytes.Repeat([]byte{b}, int(n))
		if _, err := im.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
		copy(want[off:], p)
	}
	write(0, 1, 4096)
	closeImage(t, im)
	s.Reopen()
	size, err := s.Size()
	if err == nil {
		err = s.Truncate(size - 3*mib + 512)
	}
	if err != nil {
		t.Fatal(err)
	}
	im = s.open(vhdx.OpenOptions{ReadOnly: true})
	verify(t, im, want)
	closeImage(t, im)
	s.Reopen()
	im = s.open(vhdx.OpenOptions{})
	verify(t, im, want)
	for i := range int64(8) {
		write(4*mib*(i+1), byte(i+2), 4*mib)
	}
	verify(t, im, want)
	write(3*mib, 0x77, mib)
	verify(t, im, want)
	closeImage(t, im)
	s.Reopen()
	im = s.open(vhdx.OpenOptions{})
	verify(t, im, want)
	closeImage(t, im)
}
