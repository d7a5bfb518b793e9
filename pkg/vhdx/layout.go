package vhdx

import (
	"errors"
	"fmt"
	"math/bits"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// layout is the use of the file in MiB, one bit each.
type layout struct {
	used []uint64
	mib  int64 // the file's size, rounded up
	end  int64 // bytes; a block may be claimed beyond the file's end
}

func newLayout(fileEnd int64) *layout {
	mib := (fileEnd + ondisk.MiB - 1) / ondisk.MiB
	l := &layout{used: make([]uint64, (mib+63)/64), mib: mib}
	if mib > 0 {
		l.used[0] = 1 // the header section
	}
	return l
}

// mark claims a range, in whole MiB, for one owner.
func (l *layout) mark(off, length int64) error {
	first, last := off/ondisk.MiB, (off+length)/ondisk.MiB
	if off < 0 || length < 0 || last < first || last > l.mib {
		return fmt.Errorf("%#x bytes at %#x reach beyond the file's end at %#x", length, off, l.mib*ondisk.MiB)
	}
	for i := first; i < last; {
		mask, next := wordMask(i, last)
		if clash := l.used[i/64] & mask; clash != 0 {
			at := (i/64*64 + int64(bits.TrailingZeros64(clash))) * ondisk.MiB
			return fmt.Errorf("%#x bytes at %#x overlap something else at %#x", length, off, at)
		}
		l.used[i/64] |= mask
		i = next
	}
	return nil
}

// unmark is for the test that space must not be given up before its freeing is durable.
func (l *layout) unmark(off, length int64) {
	for i := off / ondisk.MiB; i < (off+length)/ondisk.MiB; i++ {
		l.used[i/64] &^= 1 << (i % 64)
	}
}

// wordMask returns the bits of [i, last) in i's word, and where the next word begins.
func wordMask(i, last int64) (mask uint64, next int64) {
	next = min(last, i/64*64+64)
	return ^uint64(0) >> (64 - (next - i)) << (i % 64), next
}

// unused reports whether a range, in whole MiB, is there and nobody's.
func (l *layout) unused(off, length int64) bool {
	last := (off + length) / ondisk.MiB
	if off < 0 || last > l.mib {
		return false
	}
	for i := off / ondisk.MiB; i < last; {
		mask, next := wordMask(i, last)
		if l.used[i/64]&mask != 0 {
			return false
		}
		i = next
	}
	return true
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
	start := int64(-1) // of the unused range that i is in
	for i := int64(0); i < l.mib; i++ {
		word := l.used[i/64]
		used := word>>(i%64)&1 != 0
		switch {
		case !used && start < 0:
			start = i
		case used && start >= 0:
			free = append(free, extent{start * ondisk.MiB, (i - start) * ondisk.MiB})
			start = -1
		}
		if i%64 == 0 && (word == 0 || word == ^uint64(0)) {
			i += min(63, l.mib-1-i) // nothing changes inside this word
		}
		if used {
			end = (i + 1) * ondisk.MiB
		}
	}
	return free, max(end, l.end)
}
