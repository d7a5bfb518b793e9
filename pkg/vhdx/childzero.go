package vhdx

import (
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// zeroInChild makes a range inside one block of a differencing image read
// zero, and never the parent again. A block that the range covers loses its
// space, or hides its parent's; otherwise zeros are written.
func (im *Image) zeroInChild(off, n int64, discard bool) error {
	at, err := im.find(off, n)
	if err != nil || at.layer == nil && at.n == n {
		return err
	}
	state := ondisk.BlockZero
	if discard && im.payload(off>>im.blockShift).State() == ondisk.BlockPartiallyPresent {
		state = ondisk.BlockUnmapped
	}
	done, err := im.unmap(off>>im.blockShift, state, func(was ondisk.BATEntry, size int64) bool {
		covered := off&(im.blockSize-1) == 0 && (n == im.blockSize || off+n >= size)
		return covered && was.State() != ondisk.BlockFullyPresent
	})
	if done || err != nil {
		return err
	}
	switch b := im.bat.Load(); b.payload(off >> im.blockShift).State() {
	case ondisk.BlockFullyPresent:
		return im.zeroPiece(off, n, discard)
	case ondisk.BlockPartiallyPresent: // of a block in any other state the bits mean nothing
		if im.allPresent(b, off, n) {
			return im.zeroPiece(off, n, discard)
		}
	}
	return im.writeZeroSectors(off, n)
}

// writeZeroSectors writes zeros, of whole sectors and of parts of them.
func (im *Image) writeZeroSectors(off, n int64) error {
	lss := int64(im.metadata.logicalSectorSize)
	for end := off + n; off < end; {
		n := min(end-off, int64(len(zeros)))
		if whole := n &^ (lss - 1); off%lss == 0 && whole > 0 {
			n = whole
			if _, err := im.writeInside(zeros[:n], off); err != nil {
				return err
			}
		} else {
			n = min(n, lss-off%lss)
			if err := im.writeSectorPart(zeros[:n], off); err != nil {
				return err
			}
		}
		off += n
	}
	return nil
}
