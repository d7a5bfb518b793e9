package vhdx

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// ioPage is the unit of metadata I/O and of the read-modify-write of small
// writes; every filesystem's direct I/O alignment divides it.
const ioPage = 4096

// FileOptions says how an [OSFile] does its I/O.
type FileOptions struct {
	// ReadOnly takes a shared lock instead of an exclusive one.
	ReadOnly bool
	// Buffered never uses O_DIRECT. Otherwise O_DIRECT is used where the
	// filesystem really does it. One mode holds for everything in the file:
	// mixing them makes NFS write back the whole mapping at each switch.
	Buffered bool
	// NoLock leaves locking to the caller.
	NoLock bool
}

// OSFile is a [File] on an operating system file. Offsets, lengths and memory
// need no alignment: what direct I/O cannot take is copied, and a partial page
// is read, changed and written under a lock of that page.
type OSFile struct {
	f      *os.File
	fd     int
	locked bool
	align  int            // of direct I/O; 1: buffered
	pages  [64]sync.Mutex // by page number; held over the read and the write of one partial page
	syncs  atomic.Int64
	id     FileID
}

// NewOSFile takes f over, a regular file opened for reading and, unless
// o.ReadOnly, writing. The lock is an OFD lock on this very open file
// description, so it lasts until the last I/O issued on it is done, even if
// the process is killed. [ErrInUse] says that another description holds it. On error f
// stays open and remains the caller's.
func NewOSFile(f *os.File, o FileOptions) (*OSFile, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file (%v): %w", f.Name(), st.Mode().Type(), ErrInvalid)
	}
	of := &OSFile{f: f, fd: int(f.Fd()), align: 1}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		of.id = FileID{sys.Dev, sys.Ino}
	}
	if !o.NoLock {
		if err := lockFile(of.f, !o.ReadOnly); err != nil {
			return nil, err
		}
		of.locked = true
	}
	if !o.Buffered {
		of.align = of.tryDirect()
	}
	return of, nil
}

// tryDirect turns O_DIRECT on and returns its alignment, or 1 where the
// filesystem does not really do it.
func (f *OSFile) tryDirect() int {
	align := ioPage
	var stx unix.Statx_t
	if err := unix.Statx(f.fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &stx); err == nil && stx.Mask&unix.STATX_DIOALIGN != 0 {
		align = int(max(stx.Dio_mem_align, stx.Dio_offset_align, 512))
		if stx.Dio_offset_align == 0 || align > ioPage {
			return 1
		}
	}
	flags, err := unix.FcntlInt(uintptr(f.fd), unix.F_GETFL, 0)
	if err != nil {
		return 1
	}
	if _, err := unix.FcntlInt(uintptr(f.fd), unix.F_SETFL, flags|unix.O_DIRECT); err != nil {
		return 1
	}
	probe := alignedBytes(ioPage)
	if _, err := unix.Pread(f.fd, probe, 0); err != nil {
		_, _ = unix.FcntlInt(uintptr(f.fd), unix.F_SETFL, flags)
		return 1
	}
	return align
}

// Name returns the path f was opened by.
func (f *OSFile) Name() string { return f.f.Name() }

// Direct reports whether I/O bypasses the page cache.
func (f *OSFile) Direct() bool { return f.align > 1 }

// Syncs counts the completed calls of Sync, for measurements.
func (f *OSFile) Syncs() int64 { return f.syncs.Load() }

// ReadAt reads like [io.ReaderAt].
func (f *OSFile) ReadAt(p []byte, off int64) (int, error) {
	if f.aligned(p, off) {
		return f.pread(p, off)
	}
	buf := mibs.Get().(*[]byte)
	defer mibs.Put(buf)
	done := 0
	for done < len(p) {
		at := off + int64(done)
		skip := int(at % ioPage)
		n := min(len(p)-done, ondisk.MiB-skip)
		got, err := f.pread((*buf)[:roundUp(skip+n, ioPage)], at-int64(skip))
		got = max(0, min(got-skip, n))
		copy(p[done:], (*buf)[skip:skip+got])
		done += got
		if got < n {
			if err == nil {
				err = io.EOF
			}
			return done, err
		}
	}
	return done, nil
}

// WriteAt writes like [io.WriterAt].
func (f *OSFile) WriteAt(p []byte, off int64) (int, error) {
	if f.aligned(p, off) {
		return f.pwrite(p, off)
	}
	buf := mibs.Get().(*[]byte)
	defer mibs.Put(buf)
	done := 0
	for done < len(p) {
		at := off + int64(done)
		skip := int(at % ioPage)
		n := min(len(p)-done, ondisk.MiB-skip)
		if err := f.writeVia((*buf)[:roundUp(skip+n, ioPage)], p[done:done+n], skip, at-int64(skip)); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// writeVia writes p, which begins skip bytes into the whole pages of buf, at
// pageOff. What the first and the last page hold around p is read first.
func (f *OSFile) writeVia(buf, p []byte, skip int, pageOff int64) error {
	last := len(buf) - ioPage
	head := skip > 0 || len(p) < ioPage
	tail := skip+len(p) < len(buf) && last > 0
	a, b := f.stripe(pageOff), f.stripe(pageOff+int64(last))
	if head && tail && a > b {
		a, b = b, a
	}
	switch {
	case head && tail && a != b:
		f.pages[a].Lock()
		defer f.pages[a].Unlock()
		f.pages[b].Lock()
		defer f.pages[b].Unlock()
	case head:
		f.pages[a].Lock()
		defer f.pages[a].Unlock()
	case tail:
		f.pages[b].Lock()
		defer f.pages[b].Unlock()
	}
	if head {
		if err := f.readPage(buf[:ioPage], pageOff); err != nil {
			return err
		}
	}
	if tail {
		if err := f.readPage(buf[last:], pageOff+int64(last)); err != nil {
			return err
		}
	}
	copy(buf[skip:], p)
	_, err := f.pwrite(buf, pageOff)
	return err
}

func (f *OSFile) stripe(off int64) int { return int(off / ioPage % int64(len(f.pages))) }

func (f *OSFile) readPage(p []byte, off int64) error {
	n, err := f.pread(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	clear(p[n:])
	return nil
}

func (f *OSFile) pread(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pread(f.fd, p[done:], off+int64(done))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return done, &os.PathError{Op: fmt.Sprintf("read at %#x", off), Path: f.Name(), Err: err}
		case n == 0:
			return done, io.EOF
		}
		done += n
		if f.align > 1 && n%f.align != 0 { // the file ends inside this unit
			if done < len(p) {
				return done, io.EOF
			}
		}
	}
	return done, nil
}

func (f *OSFile) pwrite(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pwrite(f.fd, p[done:], off+int64(done))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err == nil && n == 0:
			err = io.ErrShortWrite
		}
		if err != nil {
			return done, &os.PathError{Op: fmt.Sprintf("write at %#x", off), Path: f.Name(), Err: err}
		}
		done += n
	}
	return done, nil
}

// Sync is fdatasync.
func (f *OSFile) Sync() error {
	err := f.op("fdatasync", func() error { return unix.Fdatasync(f.fd) })
	f.syncs.Add(1)
	return err
}

// Truncate is ftruncate.
func (f *OSFile) Truncate(size int64) error {
	return f.op("truncate", func() error { return unix.Ftruncate(f.fd, size) })
}

// Size asks the filesystem.
func (f *OSFile) Size() (int64, error) {
	st, err := f.f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// PunchHole implements [HolePuncher].
func (f *OSFile) PunchHole(off, length int64) error {
	return f.fallocate("punch hole", unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, length)
}

// ZeroRange implements [ZeroRanger].
func (f *OSFile) ZeroRange(off, length int64) error {
	return f.fallocate("zero range", unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, length)
}

// Allocate implements [Allocator].
func (f *OSFile) Allocate(off, length int64) error {
	return f.fallocate("allocate", 0, off, length)
}

func (f *OSFile) fallocate(op string, mode uint32, off, length int64) error {
	err := f.op(op, func() error { return unix.Fallocate(f.fd, mode, off, length) })
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("%w: %w", err, errors.ErrUnsupported)
	}
	return err
}

// NextData returns the offset of the next byte at or after off, and before
// end, that may not be zero; end if there is none.
func (f *OSFile) NextData(off, end int64) (int64, error) {
	next, err := unix.Seek(f.fd, off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return end, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return off, nil
	case err != nil:
		return 0, &os.PathError{Op: "seek data", Path: f.Name(), Err: err}
	}
	return min(next, end), nil
}

// NextHole returns the offset of the next byte at or after off, and before
// end, that lies in a hole; end if there is none, or the filesystem knows none.
func (f *OSFile) NextHole(off, end int64) (int64, error) {
	next, err := unix.Seek(f.fd, off, unix.SEEK_HOLE)
	switch {
	case errors.Is(err, unix.ENXIO): // off is at the end of the file
		return off, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return end, nil
	case err != nil:
		return 0, &os.PathError{Op: "seek hole", Path: f.Name(), Err: err}
	}
	return min(next, end), nil
}

// Descriptor returns the file descriptor that all I/O uses and the alignment
// that I/O on it must keep.
func (f *OSFile) Descriptor() (fd, align int) { return f.fd, f.align }

// Identity implements [Identified].
func (f *OSFile) Identity() FileID { return f.id }

// Close releases the lock and closes the file.
func (f *OSFile) Close() error {
	var err error
	if f.locked {
		err = unlockFile(f.f)
	}
	return errors.Join(err, f.f.Close())
}

func (f *OSFile) op(name string, call func() error) error {
	if err := retryEINTR(call); err != nil {
		return &os.PathError{Op: name, Path: f.Name(), Err: err}
	}
	return nil
}

func (f *OSFile) aligned(p []byte, off int64) bool {
	if f.align == 1 || len(p) == 0 {
		return true
	}
	a := uintptr(f.align)
	return (uintptr(off)|uintptr(len(p))|uintptr(unsafe.Pointer(unsafe.SliceData(p))))%a == 0
}

// alignedBytes returns n bytes that begin at a multiple of ioPage.
func alignedBytes(n int) []byte {
	b := make([]byte, n+ioPage)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (ioPage - 1)
	return b[skip : skip+n : skip+n]
}

func retryEINTR(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func roundUp[T int | int64](n, unit T) T { return (n + unit - 1) / unit * unit }
