package fusewire

import "syscall"

// All encoders write into the front of b, which must have room for the
// structure, and return its size. They allocate nothing.

// OutHeader is struct fuse_out_header, which begins every reply.
//
//	offset size field
//	0      4    len, of the whole message
//	4      4    error: 0 or a negative errno; of a notification the code
//	8      8    unique
type OutHeader struct {
	Len    uint32
	Error  int32
	Unique uint64
}

// PutOutHeader writes the header of a reply with n bytes after it.
func PutOutHeader(b []byte, unique uint64, errno syscall.Errno, n int) int {
	host.PutUint32(b[0:], uint32(SizeOutHeader+n))
	host.PutUint32(b[4:], uint32(-int32(errno)))
	host.PutUint64(b[8:], unique)
	return SizeOutHeader
}

// DecodeOutHeader is for tests, which play the kernel.
func DecodeOutHeader(b []byte) (OutHeader, error) {
	if len(b) < SizeOutHeader {
		return OutHeader{}, short("fuse_out_header", len(b), SizeOutHeader)
	}
	return OutHeader{Len: host.Uint32(b[0:]), Error: int32(host.Uint32(b[4:])), Unique: host.Uint64(b[8:])}, nil
}

// InitOut is struct fuse_init_out.
//
//	offset size field
//	0      4    major
//	4      4    minor
//	8      4    max_readahead
//	12     4    flags
//	16     2    max_background
//	18     2    congestion_threshold
//	20     4    max_write
//	24     4    time_gran
//	28     2    max_pages
//	30     2    map_alignment
//	32     4    flags2
//	36     28   max_stack_depth and unused
type InitOut struct {
	Minor               uint32
	MaxReadahead        uint32
	Flags               uint64 // flags2 in the upper half
	MaxBackground       uint16
	CongestionThreshold uint16
	MaxWrite            uint32
	MaxPages            uint16
}

// Put encodes o.
func (o InitOut) Put(b []byte) int {
	clear(b[:SizeInitOut])
	host.PutUint32(b[0:], KernelVersion)
	host.PutUint32(b[4:], o.Minor)
	host.PutUint32(b[8:], o.MaxReadahead)
	host.PutUint32(b[12:], uint32(o.Flags))
	host.PutUint16(b[16:], o.MaxBackground)
	host.PutUint16(b[18:], o.CongestionThreshold)
	host.PutUint32(b[20:], o.MaxWrite)
	host.PutUint32(b[24:], 1) // time_gran: a nanosecond
	host.PutUint16(b[28:], o.MaxPages)
	host.PutUint32(b[32:], uint32(o.Flags>>32))
	return SizeInitOut
}

// Attr is struct fuse_attr. Times stay 0: nobody asks a device's file for them.
//
//	offset size field
//	0      8    ino
//	8      8    size
//	16     8    blocks, of 512 bytes
//	24     36   atime, mtime, ctime and their nanoseconds
//	60     4    mode
//	64     4    nlink
//	68     4    uid
//	72     4    gid
//	76     4    rdev
//	80     4    blksize
//	84     4    flags
type Attr struct {
	Ino     uint64
	Size    uint64
	Mode    uint32
	Nlink   uint32
	Blksize uint32
}

func (a Attr) put(b []byte) {
	clear(b[:SizeAttr])
	host.PutUint64(b[0:], a.Ino)
	host.PutUint64(b[8:], a.Size)
	host.PutUint64(b[16:], a.Size/512)
	host.PutUint32(b[60:], a.Mode)
	host.PutUint32(b[64:], a.Nlink)
	host.PutUint32(b[80:], a.Blksize)
}

// PutAttrOut encodes struct fuse_attr_out, which the kernel may not cache:
//
//	offset size field
//	0      8    attr_valid, seconds
//	8      4    attr_valid_nsec
//	12     4    dummy
//	16     88   attr
func PutAttrOut(b []byte, a Attr) int {
	clear(b[:16])
	a.put(b[16:])
	return SizeAttrOut
}

// PutEntryOut encodes struct fuse_entry_out, whose attributes the kernel may
// not cache:
//
//	offset size field
//	0      8    nodeid
//	8      8    generation
//	16     24   entry_valid, attr_valid and their nanoseconds
//	40     88   attr
func PutEntryOut(b []byte, a Attr) int {
	clear(b[:40])
	host.PutUint64(b[0:], a.Ino)
	a.put(b[40:])
	return SizeEntryOut
}

// PutOpenOut encodes struct fuse_open_out:
//
//	offset size field
//	0      8    fh
//	8      4    open_flags
//	12     4    backing_id
func PutOpenOut(b []byte, flags uint32) int {
	clear(b[:SizeOpenOut])
	host.PutUint32(b[8:], flags)
	return SizeOpenOut
}

// PutWriteOut encodes struct fuse_write_out: size (4), padding (4).
func PutWriteOut(b []byte, size uint32) int {
	host.PutUint32(b[0:], size)
	host.PutUint32(b[4:], 0)
	return SizeWriteOut
}

// PutStatfsOut encodes struct fuse_statfs_out of a file system that is full:
//
//	offset size field
//	0      8    blocks
//	8      32   bfree, bavail, files, ffree
//	40     4    bsize: what loop takes for its discard granularity
//	44     4    namelen
//	48     4    frsize
//	52     28   padding
func PutStatfsOut(b []byte, blocks uint64, bsize uint32) int {
	clear(b[:SizeStatfsOut])
	host.PutUint64(b[0:], blocks)
	host.PutUint32(b[40:], bsize)
	host.PutUint32(b[44:], 255)
	host.PutUint32(b[48:], bsize)
	return SizeStatfsOut
}

// SizeNotify is room enough for any notification made here.
const SizeNotify = SizeOutHeader + 24

func putNotify(b []byte, code NotifyCode, n int) int {
	host.PutUint32(b[0:], uint32(SizeOutHeader+n))
	host.PutUint32(b[4:], uint32(code))
	host.PutUint64(b[8:], 0)
	return SizeOutHeader + n
}

// PutNotifyInvalInode encodes a whole NOTIFY_INVAL_INODE message that makes
// the kernel forget the attributes of a node, and no data: ino (8), off (8,
// negative: no data), len (8).
func PutNotifyInvalInode(b []byte, nodeID uint64) int {
	clear(b[:SizeNotify])
	host.PutUint64(b[SizeOutHeader:], nodeID)
	host.PutUint64(b[SizeOutHeader+8:], ^uint64(0))
	return putNotify(b, NotifyInvalInode, 24)
}

// PutNotifyResend encodes a whole NOTIFY_RESEND message: the kernel sends all
// requests again that were read and not answered.
func PutNotifyResend(b []byte) int { return putNotify(b, NotifyResend, 0) }
