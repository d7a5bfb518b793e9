package vhdx_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// damage is a way to spoil an image of four written blocks, what Check finds,
// and what is left of that after Repair.
type damage struct {
	name  string
	dirty bool // the power was cut before the image was closed
	spoil func(s *spoil)
	finds []string // severity and code, in order
	left  []string
	again bool // lost space is left for a second repair
	shows int  // blocks that must show their own content after the repair
	like  map[int]int
}

func present(off int64) ondisk.BATEntry { return ondisk.MakeBATEntry(ondisk.BlockFullyPresent, off) }

var damages = []damage{
	{name: "none", spoil: func(*spoil) {}, shows: 4},
	{
		name: "the signature", spoil: func(s *spoil) { s.put(0, 'x') },
		finds: []string{"corrupt identifier"}, shows: 4,
	},
	{
		name: "one header", spoil: func(s *spoil) { s.put(ondisk.Header1Offset+100, 1) },
		finds: []string{"warning header-invalid"}, shows: 4,
	},
	{
		name: "the current header", spoil: func(s *spoil) { s.put(ondisk.Header2Offset+100, 1) },
		finds: []string{"warning header-invalid"}, shows: 4,
	},
	{
		name: "both headers", spoil: func(s *spoil) { s.put(ondisk.Header1Offset+100, 1); s.put(ondisk.Header2Offset+100, 1) },
		finds: []string{"corrupt headers-invalid"}, left: []string{"corrupt headers-invalid"},
	},
	{
		name: "two headers with one number", spoil: func(s *spoil) {
			s.headers(func(h *ondisk.Header) { h.SequenceNumber = 9 })
			s.header(1, func(h *ondisk.Header) { h.FileWriteGUID = unknown })
		},
		finds: []string{"corrupt headers-ambiguous"}, left: []string{"corrupt headers-ambiguous"},
	},
	{
		name: "headers that differ", spoil: func(s *spoil) { s.header(0, func(h *ondisk.Header) { h.DataWriteGUID = unknown }) },
		finds: []string{"note headers-differ"}, left: []string{"note headers-differ"}, shows: 4,
	},
	{
		name: "a later version", spoil: func(s *spoil) { s.headers(func(h *ondisk.Header) { h.Version = 2 }) },
		finds: []string{"unsupported version"}, left: []string{"unsupported version"},
	},
	{
		name: "a sequence number that overflows", spoil: func(s *spoil) {
			s.header(1, func(h *ondisk.Header) { h.SequenceNumber = 1<<64 - 1 })
		},
		finds: []string{"corrupt header-field"}, left: []string{"corrupt header-field"},
	},
	{
		name: "a log beyond the file", spoil: func(s *spoil) { s.headers(func(h *ondisk.Header) { h.LogOffset = 1 << 40 }) },
		finds: []string{"corrupt log-place", "leak leak-gap"}, shows: 4,
	},
	{
		name: "a log at an odd place", spoil: func(s *spoil) { s.headers(func(h *ondisk.Header) { h.LogOffset = 4097 }) },
		finds: []string{"corrupt log-place", "leak leak-gap"}, shows: 4,
	},
	{
		name: "a log over a region", spoil: func(s *spoil) {
			s.headers(func(h *ondisk.Header) { h.LogOffset = uint64(s.region(ondisk.RegionBAT)) })
		},
		finds: []string{"corrupt log-place", "leak leak-gap"}, shows: 4,
	},
	{
		name: "a log over a block", spoil: func(s *spoil) {
			s.headers(func(h *ondisk.Header) { h.LogOffset = uint64(s.entryAt(2).Offset()) })
		},
		finds: []string{"corrupt log-place", "leak leak-gap"}, shows: 4,
	},
	{
		name: "a log GUID without a log", spoil: func(s *spoil) {
			s.headers(func(h *ondisk.Header) { h.LogGUID = unknown })
		},
		finds: []string{"corrupt log-lost"}, left: []string{"corrupt log-lost"},
	},
	{
		name: "a dirty log", dirty: true, spoil: func(*spoil) {},
		finds: []string{"warning log-dirty", "note tail-unused"}, left: []string{"note tail-unused"}, shows: 4,
	},
	{
		name: "a dirty log and all else", dirty: true, spoil: func(s *spoil) {
			s.put(0, 'x')
			s.header(1, func(h *ondisk.Header) { h.SequenceNumber += 2 })
			s.put(ondisk.Header1Offset+100, 1)
			s.put(ondisk.RegionTable1Offset+100, 1)
			truncateBy(s, -mib)
			s.put(size(s)-512, 1)
		},
		finds: []string{"corrupt identifier", "warning header-invalid", "warning log-dirty", "warning region-table", "leak leak-tail"}, shows: 4,
	},
	{
		// The entries are in the sectors 1, 2, 4, 6 and 8.
		name: "a dirty log with a hole", dirty: true, spoil: func(s *spoil) { s.put(mib+6*4096+100, 'x') },
		finds: []string{"warning log-dirty", "note log-gap", "leak leak-tail"}, shows: 2,
	},
	{
		name: "a dirty log that the file ends in", dirty: true, spoil: func(s *spoil) { s.Truncate(mib + 8192) },
		finds: []string{"corrupt file-truncated"}, left: []string{"corrupt file-truncated"},
	},
	{
		name: "a dirty log and a truncated file", dirty: true, spoil: func(s *spoil) { s.Truncate(5 * mib) },
		finds: []string{"corrupt file-truncated"}, left: []string{"corrupt file-truncated"},
	},
	{
		name: "one region table", spoil: func(s *spoil) { s.put(ondisk.RegionTable1Offset+9, 9) },
		finds: []string{"warning region-table"}, shows: 4,
	},
	{
		name: "the second region table", spoil: func(s *spoil) { s.put(ondisk.RegionTable2Offset+60000, 9) },
		finds: []string{"warning region-table"}, shows: 4,
	},
	{
		name: "both region tables", spoil: func(s *spoil) { s.put(ondisk.RegionTable1Offset+9, 9); s.put(ondisk.RegionTable2Offset+9, 9) },
		finds: []string{"corrupt region-tables"}, left: []string{"corrupt region-tables"},
	},
	{
		name: "region tables that differ", spoil: func(s *spoil) {
			was := s.bytes(ondisk.RegionTable1Offset, ondisk.RegionTableSize)
			s.regions(func(r *ondisk.RegionTable) { slices.Reverse(r.Regions) })
			s.put(ondisk.RegionTable1Offset, was...)
		},
		finds: []string{"warning region-tables-differ"}, shows: 4,
	},
	{
		name: "a required region nobody knows", spoil: func(s *spoil) {
			s.put(ondisk.Header1Offset+100, 1) // stays: nothing may be changed
			s.regions(func(r *ondisk.RegionTable) {
				r.Regions = append(r.Regions, ondisk.Region{ID: unknown, Offset: 3 * ondisk.MiB, Length: ondisk.MiB, Required: true})
			})
		},
		finds: []string{"warning header-invalid", "unsupported region-unknown", "corrupt region-place"},
		left:  []string{"warning header-invalid", "unsupported region-unknown", "corrupt region-place"},
	},
	{
		name: "a region beyond the file", spoil: func(s *spoil) {
			s.regions(func(r *ondisk.RegionTable) {
				r.Regions = append(r.Regions, ondisk.Region{ID: unknown, Offset: 1 << 40, Length: ondisk.MiB})
			})
		},
		finds: []string{"corrupt region-place"}, left: []string{"corrupt region-place"},
	},
	{
		name: "no BAT", spoil: func(s *spoil) {
			s.regions(func(r *ondisk.RegionTable) {
				for i := range r.Regions {
					if r.Regions[i].ID == ondisk.RegionBAT {
						r.Regions[i].ID, r.Regions[i].Required = unknown, false
					}
				}
			})
		},
		finds: []string{"corrupt region-missing"}, left: []string{"corrupt region-missing"},
	},
	{
		name: "regions without their flags", spoil: func(s *spoil) {
			s.regions(func(r *ondisk.RegionTable) { r.Regions[0].Required, r.Regions[1].Required = false, false })
		},
		finds: []string{"note region-flags", "note region-flags"}, left: []string{"note region-flags", "note region-flags"}, shows: 4,
	},
	{
		name: "two blocks in one place", spoil: func(s *spoil) { s.entry(3, s.entryAt(1)) },
		finds: []string{"corrupt bat-overlap", "leak leak-tail"}, shows: 3, like: map[int]int{3: 1}, left: []string{"leak leak-gap"}, again: true,
	},
	{
		name: "four blocks in one place", spoil: func(s *spoil) {
			for i := range int64(3) {
				s.entry(i+1, s.entryAt(0))
			}
		},
		finds: []string{"corrupt bat-overlap", "corrupt bat-overlap", "corrupt bat-overlap", "leak leak-tail"},
		shows: 1, like: map[int]int{1: 0, 2: 0, 3: 0}, left: []string{"leak leak-gap"}, again: true,
	},
	{
		name: "a block over the metadata", spoil: func(s *spoil) { s.entry(7, present(s.region(ondisk.RegionMetadata))) },
		finds: []string{"corrupt bat-overlap"}, shows: 4,
	},
	{
		name: "a block over the BAT", spoil: func(s *spoil) { s.entry(7, present(s.region(ondisk.RegionBAT))) },
		finds: []string{"corrupt bat-overlap"}, shows: 4,
	},
	{
		name: "a block over the log", spoil: func(s *spoil) { s.entry(7, present(mib)) },
		finds: []string{"corrupt log-place"}, shows: 4,
	},
	{
		name: "an unmapped block that remembers another's place", spoil: func(s *spoil) {
			s.entry(0, ondisk.MakeBATEntry(ondisk.BlockUnmapped, s.entryAt(1).Offset()))
		},
		finds: []string{"corrupt bat-overlap", "leak leak-gap"}, like: map[int]int{0: -1, 1: 1, 2: 2, 3: 3}, left: []string{"leak leak-gap"}, again: true,
	},
	{
		name: "an unmapped block that remembers a place beyond the file", spoil: func(s *spoil) {
			s.entry(9, ondisk.MakeBATEntry(ondisk.BlockUndefined, 1<<40))
		},
		finds: []string{"corrupt bat-place"}, shows: 4,
	},
	{
		name: "a block beyond the file", spoil: func(s *spoil) { s.entry(9, present(1<<40)) },
		finds: []string{"corrupt bat-place"}, left: []string{"corrupt bat-place"},
	},
	{
		name: "a block without a place", spoil: func(s *spoil) { s.entry(9, present(0)) },
		finds: []string{"corrupt bat-place"}, left: []string{"corrupt bat-place"},
	},
	{
		name: "a block that the file ends in", spoil: func(s *spoil) { truncateBy(s, mib/2) },
		finds: []string{"warning file-unaligned"}, shows: 4,
	},
	{
		name: "reserved bits", spoil: func(s *spoil) { s.entry(2, s.entryAt(2)|8) },
		finds: []string{"corrupt bat-reserved"}, shows: 4,
	},
	{
		name: "reserved bits and a shared place", spoil: func(s *spoil) { s.entry(2, s.entryAt(1)|8) },
		finds: []string{"corrupt bat-reserved", "corrupt bat-overlap", "leak leak-gap"}, shows: 2, like: map[int]int{2: 1, 3: 3}, left: []string{"leak leak-gap"}, again: true,
	},
	{
		name: "a garbled table", spoil: func(s *spoil) {
			s.entry(1, s.entryAt(0))
			s.entry(2, s.entryAt(2)|8)
			s.entry(9, 0xdeadbeefdeadbeef)
		},
		finds: []string{"corrupt bat-reserved", "corrupt bat-reserved", "corrupt bat-overlap", "leak leak-gap"},
		left:  []string{"corrupt bat-reserved", "corrupt bat-reserved", "corrupt bat-overlap", "leak leak-gap"},
	},
	{
		name: "a reserved state", spoil: func(s *spoil) { s.entry(9, ondisk.MakeBATEntry(4, 0)) },
		finds: []string{"corrupt bat-state"}, left: []string{"corrupt bat-state"},
	},
	{
		name: "PARTIALLY_PRESENT without a parent", spoil: func(s *spoil) { s.entry(2, s.entryAt(2)|1) },
		finds: []string{"corrupt bat-state", "leak leak-gap"}, left: []string{"corrupt bat-state", "leak leak-gap"},
	},
	{
		name: "a draft's UNMAPPED", spoil: func(s *spoil) { s.entry(9, 5) },
		finds: []string{"warning bat-draft-state"}, shows: 4,
	},
	{
		name: "ZERO with an offset", spoil: func(s *spoil) { s.entry(9, ondisk.MakeBATEntry(ondisk.BlockZero, s.entryAt(1).Offset())) },
		finds: []string{"warning bat-offset"}, shows: 4,
	},
	{
		name: "leaked space inside", spoil: func(s *spoil) { s.entry(1, 0) },
		finds: []string{"leak leak-gap"}, like: map[int]int{0: 0, 1: -1, 2: 2, 3: 3},
	},
	{
		name: "leaked space at the end", spoil: func(s *spoil) { s.entry(3, 0) },
		finds: []string{"leak leak-tail"}, like: map[int]int{0: 0, 1: 1, 2: 2, 3: -1},
	},
	{
		name: "leaked space beside damage", spoil: func(s *spoil) { s.entry(3, 0); s.entry(9, present(1<<40)) },
		finds: []string{"corrupt bat-place", "leak leak-tail"}, left: []string{"corrupt bat-place", "leak leak-tail"},
	},
	{
		name: "unused zeros at the end", spoil: func(s *spoil) { truncateBy(s, -3*mib-512) },
		finds: []string{"note tail-unused"}, left: []string{"note tail-unused"}, shows: 4,
	},
	{
		name: "no metadata table", spoil: func(s *spoil) { s.put(s.region(ondisk.RegionMetadata), 'x') },
		finds: []string{"corrupt metadata-table"}, left: []string{"corrupt metadata-table"},
	},
	{
		name: "an item at an odd place", spoil: func(s *spoil) { s.put(s.region(ondisk.RegionMetadata)+32+16, 1, 0) },
		finds: []string{"corrupt metadata-entry", "corrupt metadata-item"}, left: []string{"corrupt metadata-entry", "corrupt metadata-item"},
	},
	{
		name: "items that overlap, and a missing one", spoil: func(s *spoil) {
			at := s.region(ondisk.RegionMetadata) + 32
			copy1 := s.bytes(at, 32)
			copy1[0] ^= 0xff
			s.put(at+4*32, copy1...)
		},
		finds: []string{"corrupt metadata-entry", "unsupported metadata-unknown", "corrupt metadata-missing"},
		left:  []string{"corrupt metadata-entry", "unsupported metadata-unknown", "corrupt metadata-missing"},
	},
	{
		name: "a block size of 3", spoil: func(s *spoil) { s.put(s.region(ondisk.RegionMetadata)+0x10000, 3) },
		finds: []string{"corrupt metadata-item"}, left: []string{"corrupt metadata-item"},
	},
	{
		name: "a parent nobody names", spoil: func(s *spoil) { s.put(s.region(ondisk.RegionMetadata)+0x10004, 2) },
		finds: []string{"corrupt parent-locator"}, left: []string{"corrupt parent-locator"},
	},
	{
		name: "a disk larger than its BAT", spoil: func(s *spoil) { s.put(s.region(ondisk.RegionMetadata)+0x10008, 0, 0, 0, 0, 0, 0x40) },
		finds: []string{"corrupt bat-region"}, left: []string{"corrupt bat-region"},
	},
	{
		name: "everything that can be mended", spoil: func(s *spoil) {
			s.put(0, 'x')
			s.put(ondisk.Header1Offset+100, 1)
			s.put(ondisk.RegionTable2Offset+100, 1)
			s.entry(7, s.entryAt(0))
			s.entry(8, present(mib))
			s.entry(2, s.entryAt(2)|8)
			s.entry(9, ondisk.MakeBATEntry(ondisk.BlockZero, mib))
			truncateBy(s, -mib)
			s.put(size(s)-512, 1)
		},
		finds: []string{
			"corrupt identifier", "warning header-invalid", "warning region-table", "corrupt bat-reserved", "warning bat-offset",
			"corrupt bat-overlap", "corrupt log-place", "leak leak-tail",
		},
		shows: 4, like: map[int]int{7: 0}, left: []string{"leak leak-gap"}, again: true,
	},
}

func size(s *spoil) int64 {
	s.t.Helper()
	n, err := s.Size()
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

func truncateBy(s *spoil, n int64) {
	s.t.Helper()
	if err := s.Truncate(size(s) - n); err != nil {
		s.t.Fatal(err)
	}
}

// made spoils a new image.
func (d damage) made(t *testing.T) *spoil {
	t.Helper()
	s := newSpoil(t, 4)
	if d.dirty {
		s = dirtySpoil(t)
	}
	d.spoil(s)
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	return s
}

// dirtySpoil is an image of four blocks with the log that put them there.
func dirtySpoil(t *testing.T) *spoil {
	t.Helper()
	s := newSpoil(t, 0)
	im := s.open(vhdx.OpenOptions{GrowthStep: mib})
	for i := range int64(4) {
		if _, err := im.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, 4096), i*mib); err != nil {
			t.Fatal(err)
		}
		if err := im.Flush(); err != nil { // an entry each, of two sectors
			t.Fatal(err)
		}
	}
	left := s.Clone()
	closeImage(t, im)
	return &spoil{t, left}
}

// check checks that an opened image shows what it should.
func (d damage) check(im *vhdx.Image) error {
	want := map[int]int{}
	for i := range d.shows {
		want[i] = i
	}
	for block, like := range d.like {
		want[block] = like
	}
	got := make([]byte, 8192)
	for block, like := range want {
		if _, err := im.ReadAt(got, int64(block)*mib); err != nil {
			return err
		}
		content := make([]byte, 8192)
		copy(content, bytes.Repeat([]byte{byte(like + 1)}, 4096))
		if !bytes.Equal(got, content) {
			return fmt.Errorf("block %d begins with % x, should look like block %d", block, got[:4], like)
		}
	}
	return nil
}
