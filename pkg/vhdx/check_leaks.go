package vhdx

import (
	"bytes"
	"fmt"
	"maps"
	"slices"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// checkSpace looks for space that nothing refers to and that is not zero, and
// judges the file's size.
func (c *checker) checkSpace() error {
	c.checkLogTargets()
	used := c.space.end
	if c.plan.moveLog {
		used = max(used, ondisk.HeaderSectionSize)
	}
	c.r.UsedEnd = used
	size := c.r.FileSize
	if c.meta.params.LeaveBlocksAllocated && !c.meta.params.HasParent {
		c.checkFixed()
		return nil // its space is its own, used or not
	}
	if err := c.space.gaps(min(size, used), c.leakedGap); err != nil {
		return err
	}
	if size <= used {
		c.checkAlignment()
		return nil
	}
	leaked, err := c.nonZero(extent{used, size - used})
	if err != nil {
		return err
	}
	p := at("file", used)
	if leaked == 0 {
		c.note(CodeTailUnused, p, "%#x bytes at the end of the file are unused and zero; the next writer cuts them off", size-used)
		return nil
	}
	c.r.LeakedBytes += leaked
	c.plan.tail = used
	c.add(Finding{
		Code: CodeLeakTail, Severity: SeverityLeak, Place: p,
		Text: fmt.Sprintf("nothing refers to the last %#x bytes of the file", size-used), Repair: "cut them off",
	})
	return nil
}

// checkAlignment: what comes after the header section comes in whole MiB. Old
// software leaves files that end within one.
func (c *checker) checkAlignment() {
	if size := c.r.FileSize; size%ondisk.MiB != 0 && c.plan.extend == 0 {
		c.plan.unaligned = true
		c.add(Finding{
			Code: CodeFileUnaligned, Severity: SeverityWarning, Place: at("file", size),
			Text: "the file does not end at a multiple of 1 MiB, inside the last structure", Repair: "extend it",
		})
	}
}

// checkFixed: a fixed image should have all of its space.
func (c *checker) checkFixed() {
	if missing := c.r.Blocks - c.r.Allocated; missing > 0 {
		c.note(CodeFixedSparse, at("BAT region", int64(c.bat.Offset)), "the image is fixed, and %d of its %d blocks have no space (QEMU creates it so)", missing, c.r.Blocks)
	}
	c.checkAlignment()
}

func (c *checker) leakedGap(e extent) error {
	e.length = min(e.length, c.r.FileSize-e.off)
	leaked, err := c.nonZero(e)
	if err != nil || leaked == 0 {
		return err
	}
	c.r.LeakedBytes += leaked
	if len(c.plan.gaps) < maxPlan {
		c.plan.gaps = append(c.plan.gaps, e)
	} else {
		c.plan.more = true
	}
	c.add(Finding{
		Code: CodeLeakGap, Severity: SeverityLeak, Place: at("file", e.off),
		Text: fmt.Sprintf("nothing refers to %#x bytes, of which %#x are not zero", e.length, leaked), Repair: "free them",
	})
	return nil
}

// nonZero returns how much of a range is not zero, in whole MiB. Holes are
// skipped where the filesystem tells them.
func (c *checker) nonZero(e extent) (int64, error) {
	seeker, canSeek := c.raw.(dataSeeker) // a log does not fill holes that nothing refers to
	leaked := int64(0)
	for off := e.off; off < e.end(); off += ondisk.MiB - off%ondisk.MiB {
		if err := c.ctx.Err(); err != nil {
			return 0, fmt.Errorf("interrupted: %w", err)
		}
		at := off // where data may begin
		if canSeek {
			next, err := seeker.NextData(off, e.end())
			if err != nil {
				return 0, err
			}
			at = max(off, next&^(ioPage-1))
			if off = max(off, next/ondisk.MiB*ondisk.MiB); next >= e.end() {
				break
			}
		}
		n := min(ondisk.MiB-off%ondisk.MiB, e.end()-off)
		blank, err := c.blank(extent{off, n}, at)
		if err != nil {
			return 0, err
		}
		if !blank {
			leaked += n
		}
	}
	return leaked, nil
}

// firstLook is what is read of a MiB before the rest of it: where there is data
// at all, it is seldom zero.
const firstLook = 64 << 10

// blank reports whether a range of at most a MiB reads zero. Nothing but zeros
// comes before from.
func (c *checker) blank(e extent, from int64) (bool, error) {
	for off, n := from, int64(firstLook); off < e.end(); off, n = off+n, ondisk.MiB {
		p := c.mib()[:min(n, e.end()-off)]
		if err := readFull(c.f, p, off); err != nil {
			return false, fmt.Errorf("read unused space at %#x: %w", off, err)
		}
		if !bytes.Equal(p, zeros[:len(p)]) {
			return false, nil
		}
	}
	return true, nil
}

// checkLogTargets looks for changes of payload in the log: it is for metadata
// alone (MS-VHDX 2.3).
func (c *checker) checkLogTargets() {
	o, ok := c.f.(*overlayFile)
	if !ok || c.geometry.HasParent { // sector bitmaps are metadata among the blocks
		return
	}
	for _, off := range slices.Sorted(maps.Keys(o.pages)) {
		c.checkLogTarget(extent{off, ondisk.PageSize})
	}
	for _, e := range o.zero {
		c.checkLogTarget(e)
	}
}

func (c *checker) checkLogTarget(e extent) {
	first := e.off / ondisk.MiB * ondisk.MiB
	mib := extent{first, roundUp(e.end(), ondisk.MiB) - first}
	if e.length == 0 || c.places.at(e.off, e.length) != "" || c.space.claimed(mib.off, mib.length) < 0 {
		return
	}
	c.add(Finding{
		Code: CodeLogPayload, Severity: SeverityWarning, Place: at("log", int64(c.im.headers.current.LogOffset)),
		Text: fmt.Sprintf("it changes %#x bytes of payload at %#x, and is for metadata alone", e.length, e.off), Repair: "replay it",
	})
}
