package vhdx

import (
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
	im = im.head()
	if im.number > 0 {
		return 0, 0, false // Descriptor is another file's
	}
	return im.pinSelf(write, off, n)
}

// PinFile is Pin in whichever file is the image's head now; pin>>1 is the
// number of rotations that led to it. Only two such files have anything pinned
// at any time: a rotation waits until all before are done.
func (im *Image) PinFile(write bool, off, n int64) (fileOff int64, pin uint32, ok bool) {
	return im.head().pinSelf(write, off, n)
}

func (im *Image) pinSelf(write bool, off, n int64) (fileOff int64, pin uint32, ok bool) {
	pin = im.pins.enter()
	if fileOff, ok = im.locate(write, off, n); !ok {
		im.pins.leave(pin)
	}
	return fileOff, pin&1 | im.number<<1, ok
}

// PinnedDescriptor is Descriptor for the file of a pin that is held.
func (im *Image) PinnedDescriptor(pin uint32) (fd, align int) {
	for ; im != nil; im = im.successor.Load() {
		if im.number == pin>>1 {
			return im.Descriptor()
		}
	}
	return -1, 1
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
	b := im.bat.Load()
	e := b.payload(block)
	if e.State() != ondisk.BlockFullyPresent && (e.State() != ondisk.BlockPartiallyPresent || !im.allPresent(b, off, n)) {
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
	im = im.head()
	pin := im.pins.enter() // Close waits for those inside, and those after it see that it is closed
	defer im.pins.leave(pin)
	if err := im.usable(false); err != nil {
		return 0, err
	}
	size := im.size.Load()
	if off < 0 || off > size {
		return 0, im.checkRange(off, int64(len(p)))
	}
	short := int64(len(p)) > size-off
	if short {
		p = p[:size-off]
	}
	for done := 0; done < len(p); {
		n, err := im.readPiece(p[done:], off+int64(done))
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

// readPiece reads as much as lies in one piece.
func (im *Image) readPiece(p []byte, off int64) (int, error) {
	at, err := im.find(off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	p = p[:at.n]
	if at.layer == nil {
		clear(p)
		return len(p), nil
	}
	return at.layer.readPlace(p, at.off)
}

// WriteAt writes like [io.WriterAt]. What has been written reads back at once
// and survives a power cut after the next Flush.
func (im *Image) WriteAt(p []byte, off int64) (int, error) {
	im = im.head()
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
	im, pin, err := im.enterWrite()
	if err != nil {
		return 0, err
	}
	defer im.pins.leave(pin)
	return im.writeInside(p, off)
}

// writeInside writes for a caller that has entered the image. The sectors at
// both ends of a write to a differencing image, which has no bits for parts of
// them, are completed.
func (im *Image) writeInside(p []byte, off int64) (int, error) {
	lss := int64(im.metadata.logicalSectorSize)
	if !im.metadata.params.HasParent || (off|int64(len(p)))%lss == 0 {
		return im.writeBlocks(p, off)
	}
	for done := 0; done < len(p); {
		at := off + int64(done)
		n := int64(len(p) - done)
		var err error
		if at%lss == 0 && n >= lss {
			n -= n % lss
			_, err = im.writeBlocks(p[done:done+int(n)], at)
		} else {
			n = min(n, lss-at%lss)
			err = im.writeSectorPart(p[done:done+int(n)], at)
		}
		if err != nil {
			return done, err
		}
		done += int(n)
	}
	return len(p), nil
}

func (im *Image) writeBlocks(p []byte, off int64) (int, error) {
	var r Resolution
	for done := 0; done < len(p); {
		n := min(len(p)-done, int(im.blockSize-(off+int64(done))&(im.blockSize-1)))
		if err := im.resolve(true, im.pins.enter(), off+int64(done), int64(n), &r); err != nil {
			return done, err
		}
		if err := im.writeResolved(p[done:done+n], &r); err != nil {
			return done, fmt.Errorf("%s: write at %#x: %w", im.name, off+int64(done), err)
		}
		done += n
	}
	return len(p), nil
}

// writeSectorPart writes a part of a sector of a differencing image. Requests
// in whole sectors that meet it in flight have no order with it.
func (im *Image) writeSectorPart(p []byte, off int64) error {
	im.unaligned.Lock()
	defer im.unaligned.Unlock()
	sector := make([]byte, im.metadata.logicalSectorSize)
	skip := off % int64(len(sector))
	if _, err := im.readPiece(sector, off-skip); err != nil { // a sector is in one piece
		return err
	}
	copy(sector[skip:], p)
	_, err := im.writeBlocks(sector, off-skip)
	return err
}

// writeResolved writes p to the extents, which are those of the image that is
// the head now.
func (im *Image) writeResolved(p []byte, r *Resolution) error {
	early := im.opts.omit.has(orderDataThenMapping)
	if early {
		if err := r.Commit(); err != nil {
			return err
		}
	}
	if len(r.writes) > 0 {
		deathpoint.Reach(deathpoint.BlockClaimed)
	}
	for _, e := range r.Extents {
		if _, err := r.im.f.WriteAt(p[:e.Length], e.FileOffset); err != nil {
			if !early {
				r.Abort()
			}
			return err
		}
		p = p[e.Length:]
	}
	if early {
		return nil
	}
	err := r.Commit()
	deathpoint.Reach(deathpoint.MappingPublished)
	return err
}
