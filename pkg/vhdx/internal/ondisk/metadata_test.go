package ondisk

import (
	"errors"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

func twoItems() []MetadataEntry {
	return []MetadataEntry{
		{Item: ItemFileParameters, Offset: 64*KiB + 8, Length: 8, Required: true},
		{Item: ItemVirtualDiskSize, Offset: 64 * KiB, Length: 8, VirtualDisk: true, Required: true},
	}
}

func encodedMetadata(t testing.TB, entries ...MetadataEntry) []byte {
	t.Helper()
	b := make([]byte, MetadataTableSize)
	if err := (MetadataTable{entries}).Encode(b); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestMetadataTableBytes(t *testing.T) {
	b := encodedMetadata(t, twoItems()...)
	if string(b[:8]) != "metadata" || le.Uint16(b[10:]) != 2 || b[32+24] != 4 || b[64+24] != 6 {
		t.Fatalf("% x", b[:96])
	}
}

func TestMetadataTableRoundTrip(t *testing.T) { // I-OD-1
	rapid.Check(t, func(t *rapid.T) {
		var want MetadataTable
		next := uint32(MetadataTableSize)
		for range rapid.IntRange(0, 10).Draw(t, "entries") {
			e := MetadataEntry{
				Item: genGUID.Draw(t, "item"), User: rapid.Bool().Draw(t, "user"),
				VirtualDisk: rapid.Bool().Draw(t, "disk"), Required: rapid.Bool().Draw(t, "required"),
			}
			if e.Length = rapid.Uint32Range(0, MaxMetadataItemSize).Draw(t, "length"); e.Length > 0 {
				e.Offset = next
				next += e.Length
			}
			want.Entries = append(want.Entries, e)
		}
		b := make([]byte, MetadataTableSize)
		if want.Encode(b) != nil {
			t.Skip("a repeated item")
		}
		got, err := DecodeMetadataTable(b, next)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestMetadataTableRules(t *testing.T) {
	const first, second = 32, 64
	tests := []struct {
		rule   string
		change func(b []byte)
		offset int // -1: accepted
	}{
		{"as it is", func([]byte) {}, -1},
		{"count above 2,047", func(b []byte) { le.PutUint16(b[10:], 2048) }, 10},
		{"offset in the table", func(b []byte) { le.PutUint32(b[second+16:], 64*KiB-8) }, second + 16},
		{"length above 1 MiB", func(b []byte) { le.PutUint32(b[second+20:], MiB+1) }, second + 20},
		{"end at the region's", func(b []byte) { le.PutUint32(b[second+16:], MiB-8) }, -1},
		{"end beyond the region", func(b []byte) { le.PutUint32(b[second+16:], MiB-7) }, second + 16},
		{"end overflows 32 bits", func(b []byte) { le.PutUint32(b[second+16:], math.MaxUint32-1) }, second + 16},
		{"empty with an offset", func(b []byte) { le.PutUint32(b[second+20:], 0) }, second + 16},
		{"empty", func(b []byte) { clear(b[second+16 : second+24]) }, -1},
		{"length without offset", func(b []byte) { le.PutUint32(b[second+16:], 0) }, second + 16},
		{"unknown flag", func(b []byte) { b[second+24] |= 8 }, second + 24},
		{"repeated item", func(b []byte) { copy(b[second:second+16], b[first:first+16]) }, second},
		{"same item of the user", func(b []byte) {
			copy(b[second:second+16], b[first:first+16])
			b[second+24] = 1
		}, -1},
		{"overlap", func(b []byte) { le.PutUint32(b[second+20:], 9) }, first},
		{"reserved bytes are ignored", func(b []byte) { b[8], b[12], b[second+28] = 1, 1, 1 }, -1},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			b := encodedMetadata(t, twoItems()...)
			tt.change(b)
			_, err := DecodeMetadataTable(b, MiB)
			if tt.offset >= 0 {
				wantError(t, err, "metadata table", tt.offset, "")
			} else if err != nil {
				t.Fatal(err)
			}
		})
	}
	if _, err := DecodeMetadataTable(make([]byte, MetadataTableSize), MiB); !errors.Is(err, ErrSignature) {
		t.Fatalf("zeros: %v", err)
	}
}

func TestMetadataUserItems(t *testing.T) {
	var table MetadataTable
	for range MaxUserMetadataEntries {
		table.Entries = append(table.Entries, MetadataEntry{Item: NewGUID(), User: true})
	}
	b := encodedMetadata(t, table.Entries...)
	if _, err := DecodeMetadataTable(b, MiB); err != nil {
		t.Fatal(err)
	}
	le.PutUint16(b[10:], MaxUserMetadataEntries+1)
	b[32+32*MaxUserMetadataEntries+24] = 1
	_, err := DecodeMetadataTable(b, MiB)
	wantError(t, err, "metadata table", 32+32*MaxUserMetadataEntries, "user items")
}

func FuzzDecodeMetadataTable(f *testing.F) {
	f.Add(encodedMetadata(f, twoItems()...)[:128], uint32(MiB))
	f.Add([]byte("metadata"), uint32(0))
	f.Fuzz(func(t *testing.T, head []byte, length uint32) { // I-OD-3
		b := make([]byte, MetadataTableSize)
		copy(b, head)
		table, err := DecodeMetadataTable(b, length)
		if err != nil {
			return
		}
		for _, e := range table.Entries {
			if uint64(e.Offset)+uint64(e.Length) > uint64(length) && e.Length > 0 { // I-OD-5
				t.Fatalf("accepted %+v", e)
			}
		}
		if err := table.Encode(b); err != nil {
			t.Fatal(err)
		}
		if again, err := DecodeMetadataTable(b, length); err != nil || !cmp.Equal(again, table) {
			t.Fatalf("%+v, %v; want %+v", again, err, table)
		}
	})
}
