package ondisk

import (
	"errors"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

func encodedRegions(t testing.TB, regions ...Region) []byte {
	t.Helper()
	b := make([]byte, RegionTableSize)
	if err := (RegionTable{regions}).Encode(b); err != nil {
		t.Fatal(err)
	}
	return b
}

func twoRegions() []Region {
	return []Region{{RegionMetadata, 2 * MiB, MiB, true}, {RegionBAT, 3 * MiB, MiB, false}}
}

func TestRegionTableRoundTrip(t *testing.T) { // I-OD-1
	region := rapid.Custom(func(t *rapid.T) Region {
		return Region{
			ID:       genGUID.Draw(t, "id"),
			Offset:   rapid.Uint64Range(1, 1<<43-1<<12).Draw(t, "offset") * MiB,
			Length:   rapid.Uint32Range(1, 4095).Draw(t, "length") * MiB,
			Required: rapid.Bool().Draw(t, "required"),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		want := RegionTable{rapid.SliceOfNDistinct(region, 0, 8, func(r Region) GUID { return r.ID }).Draw(t, "regions")}
		b := make([]byte, RegionTableSize)
		if err := want.Encode(b); err != nil {
			t.Fatal(err)
		}
		got, err := DecodeRegionTable(b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestRegionTableFull(t *testing.T) {
	regions := make([]Region, MaxRegionEntries)
	for i := range regions {
		regions[i] = Region{ID: NewGUID(), Offset: uint64(i+1) * MiB, Length: MiB}
	}
	got, err := DecodeRegionTable(encodedRegions(t, regions...))
	if err != nil || !cmp.Equal(got.Regions, regions) {
		t.Fatalf("%d entries: %v", len(regions), err)
	}
	if err := (RegionTable{append(regions, twoRegions()...)}).Encode(make([]byte, RegionTableSize)); err == nil {
		t.Fatal("2,049 entries accepted")
	}
}

func TestRegionTableRules(t *testing.T) {
	const second = 16 + 32
	tests := []struct {
		rule   string
		change func(b []byte)
		offset int
	}{
		{"count above 2,047", func(b []byte) { le.PutUint32(b[8:], 2048) }, 8},
		{"count of 2^32-1", func(b []byte) { le.PutUint32(b[8:], math.MaxUint32) }, 8},
		{"offset unaligned", func(b []byte) { le.PutUint64(b[second+16:], 3*MiB+512) }, second + 16},
		{"offset in the header section", func(b []byte) { le.PutUint64(b[second+16:], 0) }, second + 16},
		{"end overflows", func(b []byte) { le.PutUint64(b[second+16:], math.MaxInt64-MiB+1) }, second + 16},
		{"length 0", func(b []byte) { le.PutUint32(b[second+24:], 0) }, second + 24},
		{"length unaligned", func(b []byte) { le.PutUint32(b[second+24:], MiB+1) }, second + 24},
		{"repeated region", func(b []byte) { copy(b[second:second+16], b[16:32]) }, second},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			b := encodedRegions(t, twoRegions()...)
			tt.change(b)
			if _, err := DecodeRegionTable(b); !errors.Is(err, ErrChecksum) { // I-OD-2
				t.Fatalf("without new checksum: %v", err)
			}
			le.PutUint32(b[4:], Checksum(b, 4))
			_, err := DecodeRegionTable(b)
			wantError(t, err, "region table", tt.offset, "")
		})
	}
	b := encodedRegions(t)
	b[0] = 'R'
	if _, err := DecodeRegionTable(b); !errors.Is(err, ErrSignature) {
		t.Fatalf("signature: %v", err)
	}
	b[0] = 'r'
	b[RegionTableSize-1] = 1
	if _, err := DecodeRegionTable(b); !errors.Is(err, ErrChecksum) {
		t.Fatalf("last byte: %v", err)
	}
	if err := (RegionTable{[]Region{{Offset: 1, Length: MiB}}}).Encode(b); err == nil {
		t.Fatal("unaligned region encoded")
	}
}

func FuzzDecodeRegionTable(f *testing.F) {
	f.Add(encodedRegions(f, twoRegions()...)[:256])
	f.Add(encodedRegions(f)[:16])
	f.Fuzz(func(t *testing.T, head []byte) { // I-OD-3
		b := make([]byte, RegionTableSize)
		copy(b, head)
		le.PutUint32(b[4:], Checksum(b, 4))
		table, err := DecodeRegionTable(b)
		if err != nil {
			return
		}
		for _, r := range table.Regions {
			if int64(r.Offset)+int64(r.Length) < 2*MiB { // I-OD-5
				t.Fatalf("accepted %+v", r)
			}
		}
		if err := table.Encode(b); err != nil {
			t.Fatal(err)
		}
		if again, err := DecodeRegionTable(b); err != nil || !cmp.Equal(again, table) {
			t.Fatalf("%+v, %v; want %+v", again, err, table)
		}
	})
}
