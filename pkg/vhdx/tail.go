package vhdx

import (
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// tailSteps is how many growth steps of unused tail make a commit shorten the file.
const tailSteps = 4

// trimTail shortens the file while it is in use when more than most bytes of
// it are unused, and leaves keep. The tail is free, so nobody is inside.
// Order:
//
//	everything logged in its place -> a new lap whose first entry says the
//	smaller size -> sync -> truncate
//
// By the specification the newest entry alone says how long the file must be;
// QEMU believes every entry of the lap. Caller holds committing.
func (im *Image) trimTail(most, keep int64) error {
	s := &im.space
	s.mu.Lock()
	target := roundUp(s.next+keep, ondisk.MiB)
	if s.growth != nil || s.end-s.next <= most || s.end <= target || im.metadata.params.LeaveBlocksAllocated {
		s.mu.Unlock()
		return nil
	}
	g := &growth{done: make(chan struct{})} // whoever needs more waits, and grows the file anew
	s.growth, s.end = g, target
	s.mu.Unlock()
	err := im.logShorter()
	if err == nil {
		// A failure leaves a longer file, no more.
		_ = im.f.Truncate(target)
	}
	s.mu.Lock()
	s.growth = nil
	s.mu.Unlock()
	close(g.done)
	return err
}

// logShorter says the new size durably, and no entry that a replay reads says
// a larger one.
func (im *Image) logShorter() error {
	if im.opts.omit.has(orderLogThenShorten) {
		return nil
	}
	if err := im.newLap(emptyEntry); err != nil {
		return err
	}
	if err := im.appendEntry(nil); err != nil {
		return err
	}
	return im.syncLog(syncTail)
}
