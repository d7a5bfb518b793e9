package vhdx

import (
	"errors"
	"fmt"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// layout is the use of the file.
type layout struct {
	used spaceMap
	mib  int64 // the file's size, rounded up
	end  int64 // bytes; a block may be claimed beyond the file's end
}

func newLayout(fileEnd int64) *layout {
	l := &layout{mib: (fileEnd + ondisk.MiB - 1) / ondisk.MiB}
	if l.mib > 0 {
		l.used.mark(0, ondisk.HeaderSectionSize)
	}
	return l
}

// inFile reports whether a range lies in the file.
func (l *layout) inFile(off, length int64) bool {
	return off >= 0 && length >= 0 && (off+length)/ondisk.MiB <= l.mib
}

// mark claims a range, in whole MiB, for one owner.
func (l *layout) mark(off, length int64) error {
	if !l.inFile(off, length) {
		return fmt.Errorf("%#x bytes at %#x reach beyond the file's end at %#x", length, off, l.mib*ondisk.MiB)
	}
	if at := l.used.claimed(off, length); at >= 0 {
		return fmt.Errorf("%#x bytes at %#x overlap something else at %#x", length, off, at)
	}
	l.used.mark(off, length)
	return nil
}

// place judges a BAT entry, claims its space and returns the entry as it is
// kept: states that read zero and own no space lose the offset that they may
// not have (Hyper-V refuses ZERO with one).
func (l *layout) place(g ondisk.Geometry, index int64, e ondisk.BATEntry) (ondisk.BATEntry, error) {
	if e.Reserved() != 0 {
		return 0, fmt.Errorf("%#x has reserved bits set", uint64(e))
	}
	if e.OffsetMB() > maxFileSize/ondisk.MiB {
		return 0, fmt.Errorf("%#x lies beyond any file", uint64(e))
	}
	bitmap := g.IsBitmap(index)
	if bitmap && g.HasParent {
		switch e.State() {
		case ondisk.BitmapNotPresent:
			return 0, nil
		case ondisk.BitmapPresent:
			if e.Offset() < ondisk.HeaderSectionSize {
				return 0, errors.New("present, but without an offset")
			}
			return e, l.mark(e.Offset(), ondisk.BitmapBlockSize)
		}
		return 0, fmt.Errorf("state %d is none of a sector bitmap", e.State())
	}
	if bitmap {
		// Without a parent it has no meaning; images exist that set it.
		if e.State() == ondisk.BitmapPresent && e.Offset() > 0 {
			if l.mark(e.Offset(), ondisk.BitmapBlockSize) == nil {
				return e, nil
			}
		}
		return 0, nil // nothing reads it
	}
	switch e.State() {
	case ondisk.BlockNotPresent, ondisk.BlockZero:
		return ondisk.MakeBATEntry(e.State(), 0), nil
	case ondisk.BlockUndefined, ondisk.BlockUnmapped:
		if e.Offset() == 0 {
			return e, nil
		}
		return e, l.mark(e.Offset(), g.BlockSize)
	case ondisk.BlockFullyPresent:
		return e, l.markPayload(e.Offset(), g.BlockSize)
	case 5: // UNMAPPED of draft 0.95
		return ondisk.MakeBATEntry(ondisk.BlockUnmapped, 0), nil
	}
	if e.State() == ondisk.BlockPartiallyPresent && g.HasParent {
		return e, l.markPayload(e.Offset(), g.BlockSize)
	}
	return 0, fmt.Errorf("state %d (%v) is not allowed in an image whose HasParent is %v", e.State(), e.State(), g.HasParent)
}

// markPayload claims a block's space. Of the last block in the file the end may be missing
// (old QEMU images); it reads zero.
func (l *layout) markPayload(off, blockSize int64) error {
	if off < ondisk.HeaderSectionSize {
		return errors.New("present, but without an offset")
	}
	if end := l.mib * ondisk.MiB; off < end && off+blockSize > end {
		l.end = off + blockSize
		return l.mark(off, end-off)
	}
	return l.mark(off, blockSize)
}

// free returns the unused ranges and the end of what is used.
func (l *layout) free() (free []extent, end int64) {
	_ = l.used.gaps(l.mib*ondisk.MiB, func(e extent) error { // fails never
		free = append(free, e)
		return nil
	})
	end = l.mib * ondisk.MiB
	if last := len(free) - 1; last >= 0 && free[last].end() == end {
		end, free = free[last].off, free[:last]
	}
	return free, max(end, l.end)
}
