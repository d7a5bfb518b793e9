package devtest

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

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
)

// FileImage is a raw file, O_DIRECT, whose ranges can be pinned: what a
// backend's own I/O is tested and measured with, without an image format.
type FileImage struct {
	f      *os.File
	sector int
	align  int64
	size   atomic.Int64

	noPin  atomic.Bool // Pin refuses, as for a block without space
	midway atomic.Pointer[func()]
	pinned atomic.Int64
	units  sync.Mutex // held while part of a unit is changed
}

var (
	_ blockdev.Image  = (*FileImage)(nil)
	_ blockdev.Pinner = (*FileImage)(nil)
)

// NewFileImage makes a raw file of size bytes at path. align is what it
// demands of I/O, as a file system would: a multiple of 512.
func NewFileImage(path string, size int64, sector, align int) (*FileImage, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_DIRECT, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(size); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	im := &FileImage{f: f, sector: sector, align: int64(align)}
	im.size.Store(size)
	return im, nil
}

// Close closes the file; pins must be gone.
func (im *FileImage) Close() error {
	if n := im.pinned.Load(); n != 0 {
		return fmt.Errorf("%d ranges are still pinned", n)
	}
	return im.f.Close()
}

// SetPin says whether ranges may be pinned.
func (im *FileImage) SetPin(on bool) { im.noPin.Store(!on) }

// Midway calls f whenever part of a unit is changed, after the unit has been
// read and before it is written back.
func (im *FileImage) Midway(f func()) { im.midway.Store(&f) }

// Grow makes the file larger.
func (im *FileImage) Grow(size int64) error {
	if err := im.f.Truncate(size); err != nil {
		return err
	}
	im.size.Store(size)
	return nil
}

// Pin implements blockdev.Pinner: the file is one allocated stretch.
func (im *FileImage) Pin(_ bool, off, n int64) (int64, uint32, bool) {
	if im.noPin.Load() || off < 0 || n > im.size.Load()-off {
		return 0, 0, false
	}
	im.pinned.Add(1)
	return off, 7, true
}

// Unpin implements blockdev.Pinner.
func (im *FileImage) Unpin(pin uint32) {
	if pin != 7 || im.pinned.Add(-1) < 0 {
		panic("devtest: unpin of what was not pinned")
	}
}

// Descriptor implements blockdev.Pinner.
func (im *FileImage) Descriptor() (fd, align int) { return int(im.f.Fd()), int(im.align) }

// aligned gives n bytes that O_DIRECT takes.
func aligned(n int64) []byte {
	b := make([]byte, n+4096)
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(b))) & 4095
	return b[skip:][:n:n]
}

// ReadAt implements [io.ReaderAt].
func (im *FileImage) ReadAt(p []byte, off int64) (int, error) {
	from, to := im.around(off, int64(len(p)))
	b := aligned(to - from)
	n, err := im.f.ReadAt(b, from)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	got := copy(p, b[min(off-from, int64(n)):n])
	if err == nil && got < len(p) {
		err = io.EOF
	}
	return got, err
}

// around widens a range to whole units.
func (im *FileImage) around(off, n int64) (from, to int64) {
	return off / im.align * im.align, (off + n + im.align - 1) / im.align * im.align
}

// WriteAt implements [io.WriterAt]. A part of a unit is changed by reading
// and writing the whole unit, which is what makes its order with other writes
// of the unit matter.
func (im *FileImage) WriteAt(p []byte, off int64) (int, error) {
	if im.size.Load()-off < int64(len(p)) {
		return 0, errors.New("beyond the end")
	}
	from, to := im.around(off, int64(len(p)))
	b := aligned(to - from)
	im.units.Lock()
	defer im.units.Unlock()
	if to-from != int64(len(p)) {
		if _, err := im.f.ReadAt(b, from); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if f := im.midway.Load(); f != nil {
			(*f)()
		}
	}
	copy(b[off-from:], p)
	if _, err := im.f.WriteAt(b, from); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (im *FileImage) fallocate(mode uint32, off, n int64) error {
	im.units.Lock()
	defer im.units.Unlock()
	for {
		err := unix.Fallocate(int(im.f.Fd()), mode|unix.FALLOC_FL_KEEP_SIZE, off, n)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// WriteZeroes implements blockdev.Image.
func (im *FileImage) WriteZeroes(off, n int64) error {
	err := im.fallocate(unix.FALLOC_FL_ZERO_RANGE, off, n)
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	// tmpfs has no such thing. An image must not say so: the kernel would stop
	// asking, and then refuse to punch holes too.
	zeros := make([]byte, min(n, mib))
	for ; n > 0; off, n = off+mib, n-mib {
		if _, err := im.WriteAt(zeros[:min(n, mib)], off); err != nil {
			return err
		}
	}
	return nil
}

// Discard implements blockdev.Image.
func (im *FileImage) Discard(off, n int64) error {
	return im.fallocate(unix.FALLOC_FL_PUNCH_HOLE, off, n)
}

// Flush implements blockdev.Image.
func (im *FileImage) Flush() error { return unix.Fdatasync(int(im.f.Fd())) }

// Size implements blockdev.Image.
func (im *FileImage) Size() int64 { return im.size.Load() }

// LogicalSectorSize implements blockdev.Image.
func (im *FileImage) LogicalSectorSize() int { return im.sector }

// PhysicalSectorSize implements blockdev.Image.
func (im *FileImage) PhysicalSectorSize() int { return int(im.align) }

// ReadOnly implements blockdev.Image.
func (im *FileImage) ReadOnly() bool { return false }
