package ondisk

import (
	"testing"

	"pgregory.net/rapid"
)

func TestBATEntryBits(t *testing.T) {
	e := MakeBATEntry(BlockFullyPresent, 4*MiB)
	if e != 0x400006 {
		t.Fatalf("entry %#x, want 0x400006", uint64(e))
	}
	hostile := BATEntry(0xFFFFFFFFFFFFFFFF)
	if hostile.State() != 7 || hostile.Reserved() != 1<<17-1 || hostile.OffsetMB() != 1<<44-1 || hostile.Offset() >= 0 {
		t.Fatalf("all ones: state %v, reserved %#x, MiB %#x, offset %#x", hostile.State(), hostile.Reserved(), hostile.OffsetMB(), hostile.Offset())
	}
	b := make([]byte, 16)
	e.Encode(b, 1)
	if string(b[8:]) != "\x06\x00\x40\x00\x00\x00\x00\x00" || DecodeBATEntry(b, 1) != e || DecodeBATEntry(b, 0) != 0 {
		t.Fatalf("bytes % x", b)
	}
	if BlockZero.String() != "ZERO" || BlockState(255).String() != "PARTIALLY_PRESENT" {
		t.Fatal("names of states")
	}
}

func TestBATEntryRoundTrip(t *testing.T) { // I-OD-1
	rapid.Check(t, func(t *rapid.T) {
		state := BlockState(rapid.IntRange(0, 7).Draw(t, "state"))
		offset := rapid.Int64Range(0, 1<<43-1).Draw(t, "MiB") * MiB
		e := MakeBATEntry(state, offset)
		if e.State() != state || e.Offset() != offset || e.OffsetMB() != uint64(offset/MiB) || e.Reserved() != 0 {
			t.Fatalf("%v at %#x became %#x", state, offset, uint64(e))
		}
	})
}

func TestGeometryKnown(t *testing.T) {
	const GiB, TiB = int64(1) << 30, int64(1) << 40
	tests := []struct {
		name                    string
		g                       Geometry
		ratio, blocks, entries  int64
		bitmaps, lengthMiB      int64
		lastIndex, firstBitmapI int64
	}{
		{"64 TiB of 1 MiB", Geometry{64 * TiB, MiB, 512, false}, 4096, 1 << 26, 1<<26 + 16383, 16384, 513, 1<<26 + 16382, 4096},
		{"64 TiB of 1 MiB, child", Geometry{64 * TiB, MiB, 512, true}, 4096, 1 << 26, 1<<26 + 16384, 16384, 513, 1<<26 + 16382, 4096},
		{"64 TiB of 32 MiB", Geometry{64 * TiB, 32 * MiB, 512, false}, 128, 1 << 21, 1<<21 + 16383, 16384, 17, 1<<21 + 16382, 128},
		{"64 TiB of 256 MiB", Geometry{64 * TiB, 256 * MiB, 512, false}, 16, 1 << 18, 1<<18 + 16383, 16384, 3, 1<<18 + 16382, 16},
		{"4 GiB of 32 MiB, one chunk exactly", Geometry{4 * GiB, 32 * MiB, 512, false}, 128, 128, 128, 1, 1, 127, 128},
		{"one sector more", Geometry{4*GiB + 512, 32 * MiB, 512, false}, 128, 129, 130, 2, 1, 129, 128},
		{"one sector more, child", Geometry{4*GiB + 512, 32 * MiB, 512, true}, 128, 129, 258, 2, 1, 129, 128},
		{"4 KiB sectors", Geometry{40 * GiB, 256 * MiB, 4096, false}, 128, 160, 161, 2, 1, 160, 128},
		{"5 MiB in one block", Geometry{5 * MiB, 32 * MiB, 512, false}, 128, 1, 1, 1, 1, 0, 128},
		{"128 GiB less 31 MiB fills a MiB of BAT", Geometry{131041 * MiB, MiB, 512, false}, 4096, 131041, 131072, 32, 1, 131071, 4096},
		{"and one block more does not fit", Geometry{131042 * MiB, MiB, 512, false}, 4096, 131042, 131073, 32, 2, 131072, 4096},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := tt.g
			got := [...]int64{g.ChunkRatio(), g.PayloadBlocks(), g.Entries(), g.BitmapBlocks(), g.BATLength() / MiB, g.PayloadIndex(g.PayloadBlocks() - 1), g.BitmapIndex(0)}
			want := [...]int64{tt.ratio, tt.blocks, tt.entries, tt.bitmaps, tt.lengthMiB, tt.lastIndex, tt.firstBitmapI}
			if got != want {
				t.Fatalf("ratio, blocks, entries, bitmaps, MiB, last payload index, first bitmap index = %v, want %v", got, want)
			}
		})
	}
	var empty Geometry
	empty.BlockSize, empty.LogicalSectorSize = MiB, 512
	if empty.Entries() != 0 || empty.BATLength() != MiB {
		t.Fatalf("empty disk: %d entries, %d bytes", empty.Entries(), empty.BATLength())
	}
}

// Every index is a payload block's or a bitmap's, once.
func TestGeometryIndexes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := Geometry{
			BlockSize:         MiB << rapid.IntRange(0, 8).Draw(t, "block"),
			LogicalSectorSize: rapid.SampledFrom([]int{512, 4096}).Draw(t, "sector"),
			HasParent:         rapid.Bool().Draw(t, "parent"),
		}
		g.VirtualSize = rapid.Int64Range(1, MaxVirtualSize/4096).Draw(t, "size") * 4096
		block := rapid.Int64Range(0, g.PayloadBlocks()-1).Draw(t, "payload block")
		i := g.PayloadIndex(block)
		if g.IsBitmap(i) || g.BlockOf(i) != block || i >= g.Entries() {
			t.Fatalf("block %d at index %d of %d: bitmap %v, block %d", block, i, g.Entries(), g.IsBitmap(i), g.BlockOf(i))
		}
		chunk := rapid.Int64Range(0, g.BitmapBlocks()-1).Draw(t, "chunk")
		i = g.BitmapIndex(chunk)
		if !g.IsBitmap(i) || g.BlockOf(i) != (chunk+1)*g.ChunkRatio() {
			t.Fatalf("bitmap %d at index %d", chunk, i)
		}
		if inUse := i < g.Entries(); inUse != (g.HasParent || chunk < g.BitmapBlocks()-1) {
			t.Fatalf("bitmap %d of %d at index %d of %d", chunk, g.BitmapBlocks(), i, g.Entries())
		}
		if g.BATLength() < g.Entries()*8 || g.BATLength() > MaxBATLength || g.BATLength()%MiB != 0 {
			t.Fatalf("%d entries in %d bytes", g.Entries(), g.BATLength())
		}
	})
}
