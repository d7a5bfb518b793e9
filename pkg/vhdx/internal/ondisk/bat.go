package ondisk

import "fmt"

// BATEntry is an entry of the block allocation table (MS-VHDX 2.5).
//
//	bits  0..2   state
//	bits  3..19  reserved, 0
//	bits 20..63  FileOffsetMB: where the block lies, in MiB
type BATEntry uint64

const (
	batStateMask    = 1<<3 - 1
	batReservedMask = 1<<20 - 1 - batStateMask
	batOffsetShift  = 20

	// BATEntrySize is the size of an entry in the file.
	BATEntrySize = 8
)

// BlockState is the state of a block.
type BlockState uint8

// The states of a payload block; 4 and 5 are reserved.
const (
	BlockNotPresent       BlockState = 0
	BlockUndefined        BlockState = 1
	BlockZero             BlockState = 2
	BlockUnmapped         BlockState = 3
	BlockFullyPresent     BlockState = 6
	BlockPartiallyPresent BlockState = 7
)

// The states of a sector bitmap block; all others are reserved.
const (
	BitmapNotPresent BlockState = 0
	BitmapPresent    BlockState = 6
)

var blockStates = [8]string{"NOT_PRESENT", "UNDEFINED", "ZERO", "UNMAPPED", "reserved 4", "reserved 5", "FULLY_PRESENT", "PARTIALLY_PRESENT"}

// String is the specification's name of a payload block's state.
func (s BlockState) String() string { return blockStates[s&batStateMask] }

// BitmapString is the specification's name of a sector bitmap block's state.
func (s BlockState) BitmapString() string {
	switch s {
	case BitmapNotPresent:
		return "NOT_PRESENT"
	case BitmapPresent:
		return "PRESENT"
	}
	return fmt.Sprintf("reserved %d", uint8(s))
}

// MakeBATEntry makes the entry of a block at a byte offset in the file, which
// is a multiple of 1 MiB.
func MakeBATEntry(state BlockState, offset int64) BATEntry {
	return BATEntry(uint64(offset)&^(1<<batOffsetShift-1) | uint64(state)&batStateMask)
}

// State returns the state bits.
func (e BATEntry) State() BlockState { return BlockState(e & batStateMask) }

// Offset is the byte offset of the block in the file. In a hostile entry it
// may be negative: bound OffsetMB first.
func (e BATEntry) Offset() int64 { return int64(e &^ (1<<batOffsetShift - 1)) }

// OffsetMB is the offset of the block in the file in MiB.
func (e BATEntry) OffsetMB() uint64 { return uint64(e) >> batOffsetShift }

// Reserved returns bits 3..19, zero in a valid entry.
func (e BATEntry) Reserved() uint64 { return uint64(e) & batReservedMask >> 3 }

// DecodeBATEntry reads entry i of a BAT, or of a part of it.
func DecodeBATEntry(bat []byte, i int) BATEntry { return BATEntry(le.Uint64(bat[i*BATEntrySize:])) }

// Encode writes e as entry i of a BAT, or of a part of it.
func (e BATEntry) Encode(bat []byte, i int) { le.PutUint64(bat[i*BATEntrySize:], uint64(e)) }

// Geometry is what the indexes of the BAT follow from. Its fields are within
// the bounds of the metadata decoders.
//
// After each run of ChunkRatio payload entries comes one sector bitmap entry;
// a chunk is what one bitmap block covers. Without a parent the table ends at
// the last payload entry, with one at the last bitmap entry.
type Geometry struct {
	VirtualSize       int64
	BlockSize         int64
	LogicalSectorSize int
	HasParent         bool
}

// ChunkRatio is the number of payload blocks in a chunk: 16 to 32,768.
func (g Geometry) ChunkRatio() int64 {
	return SectorsPerBitmap * int64(g.LogicalSectorSize) / g.BlockSize
}

// PayloadBlocks is the number of payload blocks.
func (g Geometry) PayloadBlocks() int64 { return ceilDiv(g.VirtualSize, g.BlockSize) }

// BitmapBlocks is the number of chunks.
func (g Geometry) BitmapBlocks() int64 { return ceilDiv(g.PayloadBlocks(), g.ChunkRatio()) }

// Entries is the number of entries in use; the region may hold more.
func (g Geometry) Entries() int64 {
	payload := g.PayloadBlocks()
	switch {
	case g.HasParent:
		return g.BitmapBlocks() * (g.ChunkRatio() + 1)
	case payload == 0:
		return 0
	}
	return payload + (payload-1)/g.ChunkRatio()
}

// PayloadIndex is the index of a payload block's entry.
func (g Geometry) PayloadIndex(block int64) int64 { return block + block/g.ChunkRatio() }

// BitmapIndex is the index of a chunk's sector bitmap entry.
func (g Geometry) BitmapIndex(chunk int64) int64 { return (chunk+1)*g.ChunkRatio() + chunk }

// IsBitmap reports whether the entry at index is a sector bitmap's.
func (g Geometry) IsBitmap(index int64) bool {
	ratio := g.ChunkRatio()
	return index%(ratio+1) == ratio
}

// BlockOf is the payload block of the entry at index; for a sector bitmap's
// entry, the first block of the next chunk.
func (g Geometry) BlockOf(index int64) int64 { return index - index/(g.ChunkRatio()+1) }

// BATLength is the size of the smallest region that holds the table: at least
// 1 MiB, at most [MaxBATLength].
func (g Geometry) BATLength() int64 {
	return max(1, ceilDiv(g.Entries()*BATEntrySize, Alignment)) * Alignment
}

func ceilDiv(a, b int64) int64 { return (a + b - 1) / b }
