package disk

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Device is a block device. What is whole and aligned goes around the page
// cache, the rest through it.
type Device struct {
	direct   *os.File
	buffered *os.File
	size     int64
	sector   int64
}

// OpenDevice opens a block device; for writing only if nothing uses it: no
// mount, no other program that has claimed it.
func OpenDevice(path string, writable bool) (*Device, error) {
	flag := os.O_RDONLY
	if writable {
		flag = os.O_RDWR | unix.O_EXCL
	}
	d := &Device{}
	var err error
	if d.direct, err = os.OpenFile(path, flag|unix.O_DIRECT, 0); err != nil {
		if errors.Is(err, unix.EBUSY) {
			err = fmt.Errorf("%w: it is mounted, or another program has it", err)
		}
		return nil, err
	}
	// The claim of the first description must not stop the second.
	d.buffered, err = os.OpenFile(path, flag&^unix.O_EXCL, 0)
	if err == nil {
		err = d.measure()
	}
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (d *Device) measure() error {
	sector, err := unix.IoctlGetInt(int(d.direct.Fd()), unix.BLKSSZGET)
	if err != nil {
		return fmt.Errorf("%s: ask for the sector size: %w", d.direct.Name(), err)
	}
	d.sector = int64(sector)
	d.size, err = d.direct.Seek(0, 2)
	return err
}

// Size implements [Source] and [Target].
func (d *Device) Size() int64 { return d.size }

// SectorSize is the logical one.
func (d *Device) SectorSize() int64 { return d.sector }

func (d *Device) file(p []byte, off int64) *os.File {
	if (off|int64(len(p))|int64(uintptr(unsafe.Pointer(unsafe.SliceData(p)))))&(max(d.sector, 4096)-1) == 0 {
		return d.direct
	}
	return d.buffered
}

// ReadAt implements [Source].
func (d *Device) ReadAt(p []byte, off int64) (int, error) { return d.file(p, off).ReadAt(p, off) }

// WriteAt implements [Target].
func (d *Device) WriteAt(p []byte, off int64) (int, error) { return d.file(p, off).WriteAt(p, off) }

// NextData implements [Source]: a device tells nothing of holes.
func (d *Device) NextData(off int64) (start, end int64, err error) {
	return min(off, d.size), d.size, nil
}

// WriteZeroes lets the device do it, unmapping where it can.
func (d *Device) WriteZeroes(off, n int64) error {
	if (off|n)%d.sector == 0 {
		for _, mode := range []uint32{unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE} {
			if unix.Fallocate(int(d.direct.Fd()), mode|unix.FALLOC_FL_KEEP_SIZE, off, n) == nil {
				return nil
			}
		}
	}
	return writeZeros(d, off, n)
}

// Flush implements [Target].
func (d *Device) Flush() error { return d.buffered.Sync() }

// Close closes the device.
func (d *Device) Close() error {
	err := d.direct.Close()
	if d.buffered != nil {
		err = errors.Join(err, d.buffered.Close())
	}
	return err
}
