package vhdx

import (
	"errors"
	"fmt"
	"io"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/deathpoint"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// Pin says where in the image file a range lies, if it lies in one allocated
// block and may be read, or written, right there with no further ado. It
// neither blocks nor allocates nor does I/O; ok false means that the request
// goes through ReadAt or WriteAt. The mapping stays until Unpin(pin).
func (im *Image) Pin(write bool, off, n int64) (fileOff int64, pin uint32, ok bool) {
	pin = im.pins.enter()
	if fileOff, ok = im.locate(write, off, n); !ok {
		im.pins.leave(pin)
	}
	return fileOff, pin, ok
}

// Unpin ends what Pin began, after the I/O.
func (im *Image) Unpin(pin uint32) { im.pins.leave(pin) }

// locate is Pin for a caller inside im.pins.
func (im *Image) locate(write bool, off, n int64) (int64, bool) {
	if write && !im.writable.Load() || im.closed.Load() || off < 0 || n <= 0 || off > im.size.Load()-n {
		return 0, false
	}
	block := off >> im.blockShift
	if (off+n-1)>>im.blockShift != block {
		return 0, false
	}
	e := im.payload(block)
	if e.State() != ondisk.BlockFullyPresent {
		return 0, false
	}
	fileOff := e.Offset() + off&(im.blockSize-1)
	if fileOff+n > im.fileEnd && !write && !im.writable.Load() {
		return 0, false // of a block whose end the file lacks
	}
	return fileOff, true
}

// Descriptor returns the file descriptor that all of the image's I/O uses and
// the alignment that I/O on it must keep; -1 if it has none, and then nobody
// may do what Pin allows.
func (im *Image) Descriptor() (fd, align int) {
	if d, ok := im.f.(interface{ Descriptor() (fd, align int) }); ok {
		return d.Descriptor()
	}
	return -1, 1
}

// ReadAt reads like [io.ReaderAt]; io.EOF at the end of the virtual disk.
func (im *Image) ReadAt(p []byte, off int64) (int, error) {
	pin := im.pins.enter() // Close waits for those inside, and those after it see that it is closed
	defer im.pins.leave(pin)
	if err := im.usable(false); err != nil {
		return 0, err
	}
	size := im.Size()
	if off < 0 || off > size {
		return 0, im.checkRange(off, int64(len(p)))
	}
	short := int64(len(p)) > size-off
	if short {
		p = p[:size-off]
	}
	for done := 0; done < len(p); {
		n, err := im.readBlock(p[done:], off+int64(done))
		done += n
		if err != nil {
			return done, fmt.Errorf("%s: read at %#x: %w", im.name, off+int64(done), err)
		}
	}
	if short {
		return len(p), io.EOF
	}
	return len(p), nil
}

// readBlock reads up to the end of the block that off is in.
func (im *Image) readBlock(p []byte, off int64) (int, error) {
	inBlock := off & (im.blockSize - 1)
	p = p[:min(int64(len(p)), im.blockSize-inBlock)]
	e := im.payload(off >> im.blockShift)
	if e.State() != ondisk.BlockFullyPresent {
		clear(p)
		return len(p), nil
	}
	n, err := im.f.ReadAt(p, e.Offset()+inBlock)
	switch {
	case n == len(p):
		return n, nil
	case err != nil && !errors.Is(err, io.EOF):
		return n, err
	case e.Offset()+inBlock+int64(n) < im.fileEnd:
		return n, io.ErrUnexpectedEOF // somebody has truncated the file under us
	}
	clear(p[n:]) // the file never had the end of this block
	return len(p), nil
}

// WriteAt writes like [io.WriterAt]. What has been written reads back at once
// and survives a power cut after the next Flush.
func (im *Image) WriteAt(p []byte, off int64) (int, error) {
	pin := im.pins.enter()
	fileOff, ok := im.locate(true, off, int64(len(p)))
	if ok {
		n, err := im.f.WriteAt(p, fileOff)
		im.pins.leave(pin)
		return n, err
	}
	im.pins.leave(pin)
	if err := im.usable(true); err != nil {
		return 0, err
	}
	if err := im.checkRange(off, int64(len(p))); err != nil {
		return 0, err
	}
	var r Resolution
	for done := 0; done < len(p); {
		n := min(len(p)-done, int(im.blockSize-(off+int64(done))&(im.blockSize-1)))
		if err := im.Resolve(true, off+int64(done), int64(n), &r); err != nil {
			return done, err
		}
		if err := im.writeResolved(p[done:done+n], &r); err != nil {
			return done, fmt.Errorf("%s: write at %#x: %w", im.name, off+int64(done), err)
		}
		done += n
	}
	return len(p), nil
}

func (im *Image) writeResolved(p []byte, r *Resolution) error {
	if im.opts.omit.has(orderDataThenMapping) {
		at := r.Extents[0].FileOffset
		if err := r.Commit(); err != nil {
			return err
		}
		_, err := im.f.WriteAt(p, at)
		return err
	}
	if len(r.claims) > 0 {
		deathpoint.Reach(deathpoint.BlockClaimed)
	}
	if _, err := im.f.WriteAt(p, r.Extents[0].FileOffset); err != nil {
		r.Abort()
		return err
	}
	err := r.Commit()
	deathpoint.Reach(deathpoint.MappingPublished)
	return err
}
