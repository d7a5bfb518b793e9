package vhdx

import (
	"cmp"
	"errors"
	"slices"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/deathpoint"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// Space that is given up comes back in this order (I-SPACE-4):
//
//	mapping gone in memory -> its log entry durable -> whoever may still use it
//	has left -> punched -> synced -> free
//
// The log entry is that of the next commit; then the reclaimer, behind
// everybody's back, waits for those inside and punches; whatever sync comes
// next makes the hole durable. Cut anywhere in between, the place is
// unreferenced or still its old owner's, and the next open punches it anew.

const (
	// retireDelay is how long discarded space waits for a flush until it is
	// committed without one.
	retireDelay = time.Second
	// retireMax is how many retired ranges make a discard commit.
	retireMax = 1 << 16
)

// retire gives up space whose mapping has just gone. Caller holds space.mu,
// since before the mapping went.
func (im *Image) retire(e extent) {
	s := &im.space
	if im.opts.omit.has(orderRetireThenReuse) {
		if im.makeZero(e) == nil {
			s.release(e)
		}
		return
	}
	s.retired = appendExtent(s.retired, e)
	if s.commitSoon == nil && !im.opts.noTimers {
		s.commitSoon = time.AfterFunc(retireDelay, im.commitRetired)
	}
}

// abandonExtent gives up space that was taken and maybe written to.
func (im *Image) abandonExtent(e extent) {
	im.space.mu.Lock()
	defer im.space.mu.Unlock()
	im.retire(e)
}

// retireMetadata gives up the place of a table or sector bitmap that a durable
// entry has taken away.
func (im *Image) retireMetadata(e extent) {
	if im.opts.omit.has(orderOutlived) {
		im.reclaim([]extent{e})
		return
	}
	im.log.retire(e)
}

// appendExtent appends e, or lengthens the last range by it.
func appendExtent(list []extent, e extent) []extent {
	if last := len(list) - 1; last >= 0 && list[last].end() == e.off {
		list[last].length += e.length
		return list
	}
	return append(list, e)
}

// commitRetired commits what no flush has committed. A failure poisons the
// image, which the next request tells.
func (im *Image) commitRetired() {
	im.committing.Lock()
	defer im.committing.Unlock()
	im.space.mu.Lock()
	n := len(im.space.retired)
	im.space.mu.Unlock()
	if n > 0 && !im.closed.Load() && !im.frozen.Load() {
		_ = im.commitLocked()
	}
}

// takeRetired returns the ranges that the commit about to begin makes
// unreferenced: their mappings have gone from the pages it will copy.
func (im *Image) takeRetired() []extent {
	s := &im.space
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.commitSoon != nil {
		s.commitSoon.Stop()
		s.commitSoon = nil
	}
	retired := s.retired
	s.retired = nil
	return retired
}

// reclaim gives ranges that nothing durable refers to to the reclaimer.
func (im *Image) reclaim(unused []extent) {
	if len(unused) == 0 {
		return
	}
	s := &im.space
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unused = append(s.unused, unused...)
	if !s.reclaiming {
		s.reclaiming = true
		im.background.Go(im.reclaimer)
	}
}

// reclaimer punches until nothing is left to do.
func (im *Image) reclaimer() {
	s := &im.space
	for {
		s.mu.Lock()
		batch := s.unused
		s.unused = nil
		s.reclaiming = len(batch) > 0
		if !s.reclaiming && s.idle != nil {
			close(s.idle)
			s.idle = nil
		}
		s.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		if !im.opts.omit.has(orderLeaveThenPunch) {
			im.pins.wait()
		}
		for _, e := range joinExtents(batch) {
			if im.Poisoned() == nil && im.clean(e) == nil {
				deathpoint.Reach(deathpoint.SpacePunched)
				im.provenBySync(e)
			} // otherwise it stays unused; the next open finds it unreferenced
		}
	}
}

// reclaimed waits until the reclaimer has nothing left to do.
func (im *Image) reclaimed() {
	s := &im.space
	s.mu.Lock()
	if !s.reclaiming {
		s.mu.Unlock()
		return
	}
	if s.idle == nil {
		s.idle = make(chan struct{})
	}
	idle := s.idle
	s.mu.Unlock()
	<-idle
}

// joinExtents sorts ranges and joins neighbours.
func joinExtents(list []extent) []extent {
	slices.SortFunc(list, func(a, b extent) int { return cmp.Compare(a.off, b.off) })
	joined := list[:0]
	for _, e := range list {
		joined = appendExtent(joined, e)
	}
	return joined
}

// provenBySync frees zeroed space at the next sync (I-SPACE-2).
func (im *Image) provenBySync(e extent) {
	s := &im.space
	s.mu.Lock()
	defer s.mu.Unlock()
	if im.opts.omit.has(orderPunchSynced) {
		s.release(e)
		return
	}
	s.punched = append(s.punched, e)
}

// takePunched returns what the sync about to begin makes durably zero.
func (s *space) takePunched() []extent {
	s.mu.Lock()
	defer s.mu.Unlock()
	punched := s.punched
	s.punched = nil
	return punched
}

// freePunched hands what a sync has covered to the allocator.
func (s *space) freePunched(punched []extent) {
	if len(punched) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range punched {
		s.release(e)
	}
}

// clean makes unreferenced space read zero, by writing where the file cannot
// have holes: it would grow without end otherwise.
func (im *Image) clean(e extent) error {
	if im.opts.omit.has(orderPunchThenReuse) {
		return nil
	}
	err := im.makeZero(e)
	if !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	for off := e.off; off < e.end(); off += ondisk.MiB {
		if err := im.Poisoned(); err != nil {
			return err
		}
		if err := im.writeZeros(off, off+ondisk.MiB); err != nil {
			return err
		}
	}
	return nil
}

// makeZero makes unreferenced space read zero without writing. A fixed image
// keeps it.
func (im *Image) makeZero(e extent) error {
	if z, ok := im.f.(ZeroRanger); ok && im.metadata.params.LeaveBlocksAllocated {
		return z.ZeroRange(e.off, e.length)
	}
	return im.punch(e)
}

func (im *Image) punch(e extent) error {
	p, ok := im.f.(HolePuncher)
	if !ok {
		return errHolesUnsupported
	}
	return p.PunchHole(e.off, e.length)
}
