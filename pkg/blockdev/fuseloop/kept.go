package fuseloop

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	w "github.com/csi-vhdx/csi-driver-vhdx/internal/fusewire"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/loopdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
)

// kept is what a successor must know of a device and cannot ask for: what INIT
// agreed on, and which device it is. Its form, little-endian:
//
//	offset size field
//	0      4    "FLKP"
//	4      2    version, 1
//	6      2    length of all, 80
//	8      4    minor version of FUSE
//	12     4    largest READ or WRITE: a multiple of 4096, at most 1 MiB
//	16     8    flags of INIT
//	24     4    id of the FUSE connection, 0: the kernel does not tell
//	28     4    number of the loop device
//	32     4    its major number
//	36     4    its minor number
//	40     8    its sequence number of attaching (diskseq), 0: the kernel does not tell
//	48     4    logical block size
//	52     1    1: read-only
//	53     7    zero
//	60     16   the volume: first bytes of the SHA-256 of its id
//	76     4    CRC-32C of all before
//
// A later version of this program may put more into it only under a new
// version number: flags or limits that it has agreed on with the kernel bind
// whoever serves.
type kept struct {
	params
	connection uint32
	loop       loopdev.Identity
	blockSize  uint32
	readOnly   bool
	volume     [16]byte
}

const (
	keptMagic   = "FLKP"
	keptVersion = 1
	keptSize    = 80
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (k kept) encode() []byte {
	b := make([]byte, keptSize)
	le := binary.LittleEndian
	copy(b, keptMagic)
	le.PutUint16(b[4:], keptVersion)
	le.PutUint16(b[6:], keptSize)
	le.PutUint32(b[8:], k.minor)
	le.PutUint32(b[12:], k.maxIO)
	le.PutUint64(b[16:], k.flags)
	le.PutUint32(b[24:], k.connection)
	le.PutUint32(b[28:], uint32(k.loop.Number))
	le.PutUint32(b[32:], k.loop.Major)
	le.PutUint32(b[36:], k.loop.Minor)
	le.PutUint64(b[40:], k.loop.Sequence)
	le.PutUint32(b[48:], k.blockSize)
	if k.readOnly {
		b[52] = 1
	}
	copy(b[60:76], k.volume[:])
	le.PutUint32(b[76:], crc32.Checksum(b[:76], castagnoli))
	return b
}

// decodeKept reads what encode made. Whatever it cannot vouch for is ErrUnresumable.
func decodeKept(b []byte) (kept, error) {
	refuse := func(format string, args ...any) (kept, error) {
		return kept{}, fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), blockdev.ErrUnresumable)
	}
	le := binary.LittleEndian
	if len(b) < 8 || string(b[:4]) != keptMagic {
		return refuse("what was kept of the device (%d bytes) is not of this backend", len(b))
	}
	if v := le.Uint16(b[4:]); v != keptVersion {
		return refuse("what was kept of the device has version %d, this program knows %d", v, keptVersion)
	}
	if len(b) != keptSize || le.Uint16(b[6:]) != keptSize {
		return refuse("what was kept of the device has %d bytes and claims %d, not %d", len(b), le.Uint16(b[6:]), keptSize)
	}
	if want, have := le.Uint32(b[76:]), crc32.Checksum(b[:76], castagnoli); want != have {
		return refuse("what was kept of the device is damaged: checksum %#x, not %#x", have, want)
	}
	k := kept{
		params:     params{minor: le.Uint32(b[8:]), maxIO: le.Uint32(b[12:]), flags: le.Uint64(b[16:])},
		connection: le.Uint32(b[24:]),
		loop: loopdev.Identity{
			Number: int(le.Uint32(b[28:])), Major: le.Uint32(b[32:]), Minor: le.Uint32(b[36:]), Sequence: le.Uint64(b[40:]),
		},
		blockSize: le.Uint32(b[48:]), readOnly: b[52] == 1, volume: [16]byte(b[60:76]),
	}
	switch {
	case k.minor < w.MinMinorVersion || k.minor > w.KernelMinorVersion:
		return refuse("the device was made with FUSE 7.%d, this program serves 7.%d to 7.%d", k.minor, w.MinMinorVersion, w.KernelMinorVersion)
	case k.maxIO < page || k.maxIO > mostIO || k.maxIO%page != 0:
		return refuse("the device was made with requests of up to %d bytes, this program serves multiples of %d up to %d", k.maxIO, page, mostIO)
	case k.flags&^wantFlags != 0:
		return refuse("the device was made with FUSE flags %#x, of which this program does not know %#x", k.flags, k.flags&^wantFlags)
	case k.flags&(needFlags|w.HasResend) != needFlags|w.HasResend:
		return refuse("the device was made with FUSE flags %#x, %#x are needed", k.flags, needFlags|w.HasResend)
	case b[52] > 1 || !bytes.Equal(b[53:60], make([]byte, 7)):
		return refuse("what was kept of the device has unknown bytes %x at 0x34", b[52:60])
	}
	return k, nil
}

// fits checks that k is of this volume and image, before the device is looked at.
func (k kept) fits(c blockdev.Config) error {
	sector, readOnly := uint32(c.Image.LogicalSectorSize()), c.Image.ReadOnly()
	switch {
	case k.volume != volumeOf(c.ID):
		return fmt.Errorf("what was kept is of the device of another volume: %w", blockdev.ErrUnresumable)
	case k.blockSize != sector:
		return fmt.Errorf("the device has blocks of %d bytes, the image sectors of %d: %w", k.blockSize, sector, blockdev.ErrUnresumable)
	case k.readOnly != readOnly:
		return fmt.Errorf("the device was made read-only: %v, the image was opened read-only: %v: %w", k.readOnly, readOnly, blockdev.ErrUnresumable)
	}
	return nil
}
