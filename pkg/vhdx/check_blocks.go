package vhdx

import (
	"fmt"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// entryPlace is where an entry of the BAT lies.
func (b *batPass) entryPlace(index int64) Place {
	return Place{"BAT entry", int64(b.c.bat.Offset) + index*ondisk.BATEntrySize, index}
}

// block judges the entry of a payload block that does not go on with the run.
func (b *batPass) block(index int64, e ondisk.BATEntry) {
	c := b.c
	if e.Reserved() != 0 {
		if e = b.reserved(index, e); e == 0 {
			return
		}
	}
	switch state := e.State(); state {
	case ondisk.BlockNotPresent, ondisk.BlockZero:
		if e.Offset() != 0 {
			b.warn(CodeBATOffset, index, e, ondisk.MakeBATEntry(state, 0), "%v with an offset, which it must not have; Hyper-V refuses that", state)
		}
	case ondisk.BlockUndefined, ondisk.BlockUnmapped:
		b.anchor(index, e)
	case ondisk.BlockFullyPresent, ondisk.BlockPartiallyPresent:
		if state == ondisk.BlockPartiallyPresent && !b.g.HasParent {
			b.broken(CodeBATState, index, e, "%v in an image without a parent", state)
			return
		}
		if e.OffsetMB() == 0 || e.OffsetMB() > maxFileSize/ondisk.MiB {
			if c.counted(CodeBATPlace, SeverityCorrupt) {
				return
			}
			b.broken(CodeBATPlace, index, e, "%v at %#x, where no block can lie", state, e.OffsetMB()*ondisk.MiB)
			return
		}
		if state == ondisk.BlockFullyPresent {
			b.runFirst, b.runCount, b.runOffset = b.g.BlockOf(index), 1, e.Offset()
			b.runNext = uint64(e) + uint64(b.g.BlockSize)
			return
		}
		c.r.Allocated++
		b.claim(b.g.BlockOf(index), e)
	case 5:
		b.warn(CodeBATDraft, index, e, ondisk.MakeBATEntry(ondisk.BlockUnmapped, 0), "state 5, which was UNMAPPED in a draft of the format")
	default:
		b.garbled = true
		if c.counted(CodeBATState, SeverityCorrupt) {
			return
		}
		b.broken(CodeBATState, index, e, "state %d is reserved", state)
	}
}

// broken adds damage to an entry that nothing can repair without guessing.
func (b *batPass) broken(code Code, index int64, e ondisk.BATEntry, format string, args ...any) {
	b.c.corrupt(code, b.entryPlace(index), "%#x: %s", uint64(e), fmt.Sprintf(format, args...))
}

// warn adds a breach that leaves no doubt of what the disk shows, and plans to
// replace the entry.
func (b *batPass) warn(code Code, index int64, e, better ondisk.BATEntry, format string, args ...any) {
	b.c.plan.replace(index, better)
	severity := SeverityWarning
	if e.OffsetMB() > maxFileSize/ondisk.MiB || code == CodeBATOverlap || code == CodeBATPlace {
		severity = SeverityCorrupt // it does not open
	}
	if b.c.counted(code, severity) {
		return
	}
	b.fixable(code, severity, index, e, fmt.Sprintf("make it %#x", uint64(better)), format, args...)
}

func (b *batPass) fixable(code Code, s Severity, index int64, e ondisk.BATEntry, repair, format string, args ...any) {
	if b.c.counted(code, s) {
		return
	}
	b.c.add(Finding{
		Code: code, Severity: s, Place: b.entryPlace(index), Repair: repair,
		Text: fmt.Sprintf("%#x: %s", uint64(e), fmt.Sprintf(format, args...)),
	})
}

// reserved judges an entry with reserved bits set. It returns the entry
// without them where that one makes sense; otherwise the table is garbled.
func (b *batPass) reserved(index int64, e ondisk.BATEntry) ondisk.BATEntry {
	clean := ondisk.MakeBATEntry(e.State(), e.Offset())
	sense := clean.OffsetMB() <= uint64(b.end/ondisk.MiB)
	switch clean.State() {
	case ondisk.BlockFullyPresent, ondisk.BlockPartiallyPresent:
		sense = sense && clean.OffsetMB() > 0 && (b.g.HasParent || clean.State() == ondisk.BlockFullyPresent)
	case 4, 5:
		sense = false
	}
	if !sense {
		b.garbled = true
		if b.c.counted(CodeBATReserved, SeverityCorrupt) {
			return 0
		}
		b.broken(CodeBATReserved, index, e, "reserved bits are set, and the rest makes no sense either")
		return 0
	}
	b.c.plan.replace(index, clean)
	b.fixable(CodeBATReserved, SeverityCorrupt, index, e, "clear them", "reserved bits are set")
	return clean
}

// anchor judges a block that remembers where its content lay: the space is
// still its own, and its content may be given up.
func (b *batPass) anchor(index int64, e ondisk.BATEntry) {
	if e.Offset() == 0 {
		return
	}
	if e.OffsetMB() > maxFileSize/ondisk.MiB || e.Offset()+b.g.BlockSize > b.end {
		b.warn(CodeBATPlace, index, e, ondisk.MakeBATEntry(e.State(), 0), "%v remembers a place beyond the file's end at %#x", e.State(), b.c.r.FileSize)
		return
	}
	b.anchors = true
	b.take(e.Offset(), b.g.BlockSize)
}

// claim takes the space of a block that has some.
func (b *batPass) claim(block int64, e ondisk.BATEntry) {
	index := b.g.PayloadIndex(block)
	switch off, end := e.Offset(), e.Offset()+b.g.BlockSize; {
	case off >= b.end || end > maxFileSize:
		if b.c.counted(CodeBATPlace, SeverityCorrupt) {
			return
		}
		b.broken(CodeBATPlace, index, e, "payload block %d lies beyond the file's end at %#x: the file has been truncated", block, b.c.r.FileSize)
		return
	case end > b.end:
		b.c.plan.extend = max(b.c.plan.extend, end)
		b.fixable(CodeBATCut, SeverityWarning, index, e, "extend the file",
			"the file ends at %#x, inside payload block %d; the rest reads zero (old versions of QEMU leave it so)", b.c.r.FileSize, block)
	}
	b.take(e.Offset(), b.g.BlockSize)
}

// take marks space, and remembers it where somebody has it already.
func (b *batPass) take(off, length int64) {
	if b.c.space.mark(off, length) < 0 {
		return
	}
	if b.c.places.holds(logName, off, length) {
		b.c.plan.moveLog = true // before a repair writes to it (I-REP-4), however many clashes there are
	}
	if len(b.clashes) < maxClashes {
		b.clashes = append(b.clashes, extent{off, length})
	} else {
		b.c.plan.more = true
	}
}

// maxClashes bounds what one pass remembers; a repair makes several.
const maxClashes = 1 << 16

// beyondDisk judges an entry of the last chunk of a differencing image, behind
// the last block of the disk. Whatever it says, nothing reads it.
func (b *batPass) beyondDisk(index int64, e ondisk.BATEntry) {
	if e == ondisk.MakeBATEntry(ondisk.BlockZero, 0) {
		return // of an interrupted change of size: it would hide the parent, and does no harm
	}
	state := e.State()
	space := state == ondisk.BlockFullyPresent || state == ondisk.BlockPartiallyPresent ||
		(state == ondisk.BlockUndefined || state == ondisk.BlockUnmapped) && e.Offset() != 0
	b.c.plan.replace(index, 0)
	severity := SeverityWarning
	switch {
	case e.Reserved() != 0, state == 4, e.OffsetMB() > maxFileSize/ondisk.MiB:
		severity = SeverityCorrupt // it does not open
	case space && (e.OffsetMB() == 0 || e.Offset() >= b.end || !isBlock(state) && e.Offset()+b.g.BlockSize > b.end):
		severity = SeverityCorrupt
	case space:
		b.anchors = true
		b.take(e.Offset(), b.g.BlockSize)
	}
	b.fixable(CodeBATBeyond, severity, index, e, "make it 0x0", "it belongs to no block of the disk")
}

// isBlock tells blocks with content from those that only remember a place.
func isBlock(s ondisk.BlockState) bool {
	return s == ondisk.BlockFullyPresent || s == ondisk.BlockPartiallyPresent
}

// bitmapEntry judges the entry of a sector bitmap block (MS-VHDX 2.5.1.2).
func (b *batPass) bitmapEntry(index int64, e ondisk.BATEntry) error {
	chunk := index / (b.ratio + 1)
	if !b.g.HasParent {
		if e != 0 {
			b.warn(CodeBitmapUnused, index, e, 0, "a sector bitmap in an image without a parent, which has no use for it")
		}
		return nil
	}
	if b.bitmapOf == nil { // a later pass has eyes for space alone
		return nil
	}
	return b.bitmapOf(chunk, e)
}
