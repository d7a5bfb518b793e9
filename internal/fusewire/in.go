package fusewire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrShort: a message ends before its structure does, or its length is wrong.
var ErrShort = errors.New("FUSE message is cut short")

var host = binary.NativeEndian

func short(what string, have, want int) error {
	return fmt.Errorf("decode %s: %d bytes of %d: %w", what, have, want, ErrShort)
}

// InHeader is struct fuse_in_header, which begins every request.
//
//	offset size field
//	0      4    len, of the whole message
//	4      4    opcode
//	8      8    unique
//	16     8    nodeid
//	24     4    uid
//	28     4    gid
//	32     4    pid
//	36     2    total_extlen, in units of 8
//	38     2    padding
type InHeader struct {
	Len    uint32
	Opcode Opcode
	Unique uint64
	NodeID uint64
	UID    uint32
	GID    uint32
	PID    uint32
	ExtLen uint16
}

// DecodeInHeader reads the header of msg and checks that the message is as
// long as it says.
func DecodeInHeader(msg []byte) (InHeader, error) {
	if len(msg) < SizeInHeader {
		return InHeader{}, short("fuse_in_header", len(msg), SizeInHeader)
	}
	h := InHeader{
		Len:    host.Uint32(msg[0:]),
		Opcode: Opcode(host.Uint32(msg[4:])),
		Unique: host.Uint64(msg[8:]),
		NodeID: host.Uint64(msg[16:]),
		UID:    host.Uint32(msg[24:]),
		GID:    host.Uint32(msg[28:]),
		PID:    host.Uint32(msg[32:]),
		ExtLen: host.Uint16(msg[36:]),
	}
	if uint64(h.Len) != uint64(len(msg)) {
		return InHeader{}, short("FUSE request", len(msg), int(h.Len))
	}
	return h, nil
}

// InitIn is struct fuse_init_in.
//
//	offset size field
//	0      4    major
//	4      4    minor
//	8      4    max_readahead
//	12     4    flags
//	16     4    flags2, from 7.36 on
//	20     44   unused
type InitIn struct {
	Major        uint32
	Minor        uint32
	MaxReadahead uint32
	Flags        uint64 // flags2 in the upper half
}

// DecodeInitIn reads the arguments of INIT; kernels before 7.36 send 16 bytes.
func DecodeInitIn(b []byte) (InitIn, error) {
	if len(b) < sizeInitInOld {
		return InitIn{}, short("fuse_init_in", len(b), sizeInitInOld)
	}
	in := InitIn{
		Major:        host.Uint32(b[0:]),
		Minor:        host.Uint32(b[4:]),
		MaxReadahead: host.Uint32(b[8:]),
		Flags:        uint64(host.Uint32(b[12:])),
	}
	if len(b) >= SizeInitIn {
		in.Flags |= uint64(host.Uint32(b[16:])) << 32
	}
	return in, nil
}

// ReadIn is struct fuse_read_in, and struct fuse_write_in, which differ only
// in the name of the flags.
//
//	offset size field
//	0      8    fh
//	8      8    offset
//	16     4    size
//	20     4    read_flags, write_flags
//	24     8    lock_owner
//	32     4    flags
//	36     4    padding
type ReadIn struct {
	Offset uint64
	Size   uint32
}

// DecodeReadIn reads the arguments of READ or WRITE.
func DecodeReadIn(b []byte) (ReadIn, error) {
	if len(b) < SizeReadIn {
		return ReadIn{}, short("fuse_read_in", len(b), SizeReadIn)
	}
	return ReadIn{Offset: host.Uint64(b[8:]), Size: host.Uint32(b[16:])}, nil
}

// FallocateIn is struct fuse_fallocate_in.
//
//	offset size field
//	0      8    fh
//	8      8    offset
//	16     8    length
//	24     4    mode
//	28     4    padding
type FallocateIn struct {
	Offset uint64
	Length uint64
	Mode   uint32
}

// DecodeFallocateIn reads the arguments of FALLOCATE.
func DecodeFallocateIn(b []byte) (FallocateIn, error) {
	if len(b) < SizeFallocateIn {
		return FallocateIn{}, short("fuse_fallocate_in", len(b), SizeFallocateIn)
	}
	return FallocateIn{Offset: host.Uint64(b[8:]), Length: host.Uint64(b[16:]), Mode: host.Uint32(b[24:])}, nil
}

// DecodeName reads the argument of LOOKUP: a name that ends in a zero byte.
func DecodeName(b []byte) (string, error) {
	for i, c := range b {
		if c == 0 {
			return string(b[:i]), nil
		}
	}
	return "", fmt.Errorf("decode name: no end in %d bytes: %w", len(b), ErrShort)
}
