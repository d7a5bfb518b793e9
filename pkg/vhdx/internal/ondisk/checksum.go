package ondisk

import "hash/crc32"

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	noChecksum [4]byte
)

// Checksum is the CRC-32C of b with the four bytes at fieldOffset counted as
// zero, as every checksum of the format is computed.
func Checksum(b []byte, fieldOffset int) uint32 {
	crc := crc32.Update(0, castagnoli, b[:fieldOffset])
	crc = crc32.Update(crc, castagnoli, noChecksum[:])
	return crc32.Update(crc, castagnoli, b[fieldOffset+4:])
}
