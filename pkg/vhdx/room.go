package vhdx

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What an image knows of the space of its filesystem. What is reserved for it
// (I-SYNC-3) is all that it writes without being asked: headers, log, metadata,
// BAT and sector bitmaps. Payload is not: a dynamic image lies in a sparse file.

// fullBelow is how few free bytes make a filesystem full for writes that have
// failed already: more than a request needs, and what others keep on the share
// to be able to free space (a pool has 1 MiB) is not taken from them.
const fullBelow = 4 << 20

// Full reports that the file's filesystem says it has no space for another
// write. False is no promise: quotas do not show.
func (im *Image) Full() bool {
	f, ok := im.head().f.(interface{ Full() bool })
	return ok && f.Full()
}

// Full reports that the filesystem has less than some MiB free.
func (f *OSFile) Full() bool {
	var st unix.Statfs_t
	err := retryEINTR(func() error { return unix.Fstatfs(f.fd, &st) })
	if err != nil || st.Blocks == 0 || st.Bsize <= 0 {
		return false
	}
	least := fullBelow / uint64(st.Bsize)
	if st.Type == unix.EXT4_SUPER_MAGIC {
		least += min(st.Blocks/50, 4096) // it counts as free what it keeps for its own metadata
	}
	return st.Bfree < least
}

func isFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// reserve makes the space of a range real. Filesystems count first and look
// then: on a full one some refuse what the file has already (XFS), as it does
// when a successor takes the image over in the middle of a pause.
func (im *Image) reserve(e extent) error {
	a, ok := im.f.(Allocator)
	if !ok {
		return nil
	}
	err := a.Allocate(e.off, e.length)
	if err == nil || errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	if r, ok := im.f.(interface{ Reserved(off, n int64) bool }); ok && isFull(err) && r.Reserved(e.off, e.length) {
		return nil
	}
	return fmt.Errorf("reserve space for metadata at %#x: %w", e.off, err)
}

// The part of linux/fiemap.h that Reserved needs.
const (
	fiemapIoctl      = 0xc020660b
	fiemapHeader     = 32
	fiemapExtent     = 56
	fiemapExtents    = 64
	fiemapLast       = 0x1
	fiemapUnsuitable = 0x2 | 0x4 | 0x2000 // unknown, delayed, shared: written elsewhere
)

// Reserved reports whether every byte of a range has space of its own in the
// filesystem. False where that cannot be told.
func (f *OSFile) Reserved(off, n int64) bool {
	for end := off + n; off < end; {
		var b [fiemapHeader + fiemapExtents*fiemapExtent]byte
		le := binary.NativeEndian
		le.PutUint64(b[0:], uint64(off))
		le.PutUint64(b[8:], uint64(end-off))
		le.PutUint32(b[24:], fiemapExtents)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(f.fd), fiemapIoctl, uintptr(unsafe.Pointer(&b[0]))); errno != 0 {
			return false
		}
		mapped := int(le.Uint32(b[20:]))
		if mapped == 0 || mapped > fiemapExtents {
			return false
		}
		for i := range mapped {
			x := b[fiemapHeader+i*fiemapExtent:][:fiemapExtent]
			start, length, flags := int64(le.Uint64(x)), int64(le.Uint64(x[16:])), le.Uint32(x[40:])
			if start > off || flags&fiemapUnsuitable != 0 {
				return false
			}
			if off = max(off, start+length); flags&fiemapLast != 0 && off < end {
				return false
			}
		}
	}
	return true
}

// CannotPause says why writes to the file cannot wait for space: "" if they can.
// The client of a network filesystem answers a buffered write before the server
// has space for it, and says only to a later sync that there was none.
func (f *OSFile) CannotPause() string {
	if f.Direct() {
		return ""
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(f.fd, &st); err != nil {
		return (&os.PathError{Op: "statfs", Path: f.Name(), Err: err}).Error()
	}
	switch uint32(st.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC:
		return "" // they set space aside before they answer
	}
	return fmt.Sprintf("%s: its filesystem does no direct I/O, so that it tells of missing space only after a write has been answered", f.Name())
}

// CannotPause says why writes to the image cannot wait for space: "" if they can.
func (im *Image) CannotPause() string {
	if f, ok := im.head().f.(interface{ CannotPause() string }); ok {
		return f.CannotPause()
	}
	return ""
}
