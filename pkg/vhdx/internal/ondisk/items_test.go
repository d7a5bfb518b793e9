package ondisk

import (
	"testing"

	"pgregory.net/rapid"
)

func TestFileParametersRoundTrip(t *testing.T) { // I-OD-1
	rapid.Check(t, func(t *rapid.T) {
		want := FileParameters{
			BlockSize:            MiB << rapid.IntRange(0, 8).Draw(t, "shift"),
			LeaveBlocksAllocated: rapid.Bool().Draw(t, "fixed"),
			HasParent:            rapid.Bool().Draw(t, "parent"),
		}
		b := make([]byte, FileParametersSize)
		want.Encode(b)
		if got, err := DecodeFileParameters(b); err != nil || got != want {
			t.Fatalf("%+v, %v; want %+v", got, err, want)
		}
	})
}

func TestItemRules(t *testing.T) {
	u64 := func(v uint64) []byte { return le.AppendUint64(nil, v) }
	u32 := func(v uint32) []byte { return le.AppendUint32(nil, v) }
	parameters := func(b []byte) error { _, err := DecodeFileParameters(b); return err }
	size := func(b []byte) error { _, err := DecodeVirtualDiskSize(b); return err }
	id := func(b []byte) error { _, err := DecodeVirtualDiskID(b); return err }
	logical := func(b []byte) error { _, err := DecodeLogicalSectorSize(b); return err }
	physical := func(b []byte) error { _, err := DecodePhysicalSectorSize(b); return err }
	tests := []struct {
		rule   string
		decode func([]byte) error
		b      []byte
		ok     bool
	}{
		{"block size 1 MiB", parameters, u64(MiB), true},
		{"block size 256 MiB, both flags", parameters, u64(256*MiB | 3<<32), true},
		{"block size 512 KiB", parameters, u64(MiB / 2), false},
		{"block size 512 MiB", parameters, u64(512 * MiB), false},
		{"block size 3 MiB", parameters, u64(3 * MiB), false},
		{"block size 0", parameters, u64(0), false},
		{"unknown file parameter", parameters, u64(MiB | 4<<32), false},
		{"file parameters short", parameters, u32(MiB), false},
		{"one sector", size, u64(512), true},
		{"64 TiB", size, u64(MaxVirtualSize), true},
		{"more than 64 TiB", size, u64(MaxVirtualSize + 512), false},
		{"nothing", size, u64(0), false},
		{"no whole sector", size, u64(513), false},
		{"beyond int64", size, u64(1 << 63), false},
		{"size long", size, append(u64(512), 0), false},
		{"disk id", id, make([]byte, 16), true},
		{"disk id short", id, make([]byte, 15), false},
		{"logical 512", logical, u32(512), true},
		{"logical 4096", logical, u32(4096), true},
		{"logical 1024", logical, u32(1024), false},
		{"logical 0", logical, u32(0), false},
		{"logical long", logical, u64(512), false},
		{"physical 4096", physical, u32(4096), true},
		{"physical 520", physical, u32(520), false},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			if err := tt.decode(tt.b); (err == nil) != tt.ok {
				t.Fatalf("error %v", err)
			}
		})
	}
}

func TestItemsRoundTrip(t *testing.T) { // I-OD-1
	b := make([]byte, 16)
	EncodeVirtualDiskSize(b, 5*MiB)
	if got, err := DecodeVirtualDiskSize(b[:8]); err != nil || got != 5*MiB {
		t.Fatalf("size %d, %v", got, err)
	}
	EncodeSectorSize(b, 4096)
	if got, err := DecodeLogicalSectorSize(b[:4]); err != nil || got != 4096 {
		t.Fatalf("sector %d, %v", got, err)
	}
	want := NewGUID()
	EncodeVirtualDiskID(b, want)
	if got, err := DecodeVirtualDiskID(b); err != nil || got != want {
		t.Fatalf("id %v, %v", got, err)
	}
}

func FuzzDecodeItems(f *testing.F) {
	f.Add(le.AppendUint64(nil, 32*MiB))
	f.Add(le.AppendUint32(nil, 512))
	f.Add(make([]byte, 16))
	f.Fuzz(func(t *testing.T, b []byte) { // I-OD-3, I-OD-5
		if p, err := DecodeFileParameters(b); err == nil {
			again := make([]byte, 8)
			if p.Encode(again); string(again) != string(b) {
				t.Fatalf("% x became % x", b, again)
			}
		}
		if size, err := DecodeVirtualDiskSize(b); err == nil && (size <= 0 || size > MaxVirtualSize) {
			t.Fatalf("accepted size %#x", size)
		}
		_, _ = DecodeVirtualDiskID(b)
		_, _ = DecodeLogicalSectorSize(b)
		_, _ = DecodePhysicalSectorSize(b)
	})
}
