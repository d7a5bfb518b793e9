package ondisk

import "math/bits"

// FileParameters is the metadata item of the same name (MS-VHDX 2.6.2.1).
//
//	0  4  BlockSize, 1 MiB to 256 MiB, a power of two
//	4  4  bit 0 LeaveBlocksAllocated, bit 1 HasParent, others 0
type FileParameters struct {
	BlockSize            uint32
	LeaveBlocksAllocated bool // fixed: no block is ever given back
	HasParent            bool // differencing
}

const (
	leaveBlocksAllocated = 1 << 0
	hasParent            = 1 << 1
)

// DecodeFileParameters reads the item, which is b.
func DecodeFileParameters(b []byte) (FileParameters, error) {
	const name = "File Parameters"
	if len(b) != FileParametersSize {
		return FileParameters{}, errItemSize(name, len(b), FileParametersSize)
	}
	size, flags := le.Uint32(b), le.Uint32(b[4:])
	if size < MinBlockSize || size > MaxBlockSize || bits.OnesCount32(size) != 1 {
		return FileParameters{}, errf(name, 0, "block size %#x is no power of two from 1 MiB to 256 MiB", size)
	}
	if flags&^(leaveBlocksAllocated|hasParent) != 0 {
		return FileParameters{}, errf(name, 4, "unknown flags %#x", flags)
	}
	return FileParameters{
		BlockSize:            size,
		LeaveBlocksAllocated: flags&leaveBlocksAllocated != 0,
		HasParent:            flags&hasParent != 0,
	}, nil
}

// Encode writes the item to the first 8 bytes of dst.
func (p FileParameters) Encode(dst []byte) {
	var flags uint32
	if p.LeaveBlocksAllocated {
		flags |= leaveBlocksAllocated
	}
	if p.HasParent {
		flags |= hasParent
	}
	le.PutUint32(dst, p.BlockSize)
	le.PutUint32(dst[4:], flags)
}

// DecodeVirtualDiskSize reads the item of that name (MS-VHDX 2.6.2.2), which
// is b: more than 0, at most 64 TiB, a multiple of 512. That it is a multiple
// of the logical sector size is the caller's to check.
func DecodeVirtualDiskSize(b []byte) (int64, error) {
	const name = "Virtual Disk Size"
	if len(b) != VirtualDiskSizeSize {
		return 0, errItemSize(name, len(b), VirtualDiskSizeSize)
	}
	size := le.Uint64(b)
	if size == 0 || size > MaxVirtualSize || size%512 != 0 {
		return 0, errf(name, 0, "%#x is no multiple of 512 from 512 to 64 TiB", size)
	}
	return int64(size), nil
}

// EncodeVirtualDiskSize writes the item to the first 8 bytes of dst.
func EncodeVirtualDiskSize(dst []byte, size int64) { le.PutUint64(dst, uint64(size)) }

// DecodeVirtualDiskID reads the item of that name, Page 83 data (MS-VHDX
// 2.6.2.3), which is b.
func DecodeVirtualDiskID(b []byte) (GUID, error) {
	if len(b) != VirtualDiskIDSize {
		return GUID{}, errItemSize("Virtual Disk ID", len(b), VirtualDiskIDSize)
	}
	return GUID(b), nil
}

// EncodeVirtualDiskID writes the item to the first 16 bytes of dst.
func EncodeVirtualDiskID(dst []byte, id GUID) { copy(dst[:VirtualDiskIDSize], id[:]) }

// DecodeLogicalSectorSize reads the item of that name (MS-VHDX 2.6.2.4), which
// is b: 512 or 4096.
func DecodeLogicalSectorSize(b []byte) (int, error) {
	return decodeSectorSize("Logical Sector Size", b)
}

// DecodePhysicalSectorSize reads the item of that name (MS-VHDX 2.6.2.5),
// which is b: 512 or 4096.
func DecodePhysicalSectorSize(b []byte) (int, error) {
	return decodeSectorSize("Physical Sector Size", b)
}

func decodeSectorSize(name string, b []byte) (int, error) {
	if len(b) != SectorSizeSize {
		return 0, errItemSize(name, len(b), SectorSizeSize)
	}
	size := le.Uint32(b)
	if size != 512 && size != 4096 {
		return 0, errf(name, 0, "%d, want 512 or 4096", size)
	}
	return int(size), nil
}

// EncodeSectorSize writes either sector size item to the first 4 bytes of dst.
func EncodeSectorSize(dst []byte, size int) { le.PutUint32(dst, uint32(size)) }

func errItemSize(name string, have, want int) error {
	return errf(name, 0, "item of %d bytes, want %d", have, want)
}
