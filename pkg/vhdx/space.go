package vhdx

import (
	"fmt"
	"sync"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/deathpoint"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// extent is a range of the file in bytes, in whole MiB.
type extent struct{ off, length int64 }

func (e extent) end() int64 { return e.off + e.length }

// space hands out proven-zero space and nothing else (I-SPACE-2). It comes from
// the tail [next, end), which this open itself extended and made durable, and
// from ranges inside the file whose punch is durable. What happens to space
// that is given up is in reclaim.go.
type space struct {
	mu      sync.Mutex
	next    int64            // guarded by mu; first byte of the tail not handed out
	end     int64            // guarded by mu; the file's durable size
	free    freeList         // guarded by mu; proven zero, below next
	growth  *growth          // guarded by mu; under way, or nil
	pending map[int64]*claim // guarded by mu; by payload block

	retired    []extent      // guarded by mu; given up, and the medium may still refer to it
	commitSoon *time.Timer   // guarded by mu; commits what is retired if nobody else does, or nil
	reclaiming bool          // guarded by mu; the reclaimer runs
	idle       chan struct{} // guarded by mu; closed when it has ended; nil: nobody waits
	unused     []extent      // guarded by mu; nothing refers to it, but requests under way may; the reclaimer's
	punched    []extent      // guarded by mu; zero, and durably so after the next sync

	// Of a differencing image:
	bitmaps   map[int64]int64    // guarded by mu; by chunk, space for sector bitmaps that are not in the table yet
	dirtyBits map[int64]struct{} // guarded by mu; numbers of bitmap pages to be logged
}

// growth is one extension of the file.
type growth struct {
	done chan struct{}
	err  error // valid after done
}

// claim is space for a block whose mapping is not published yet. All writers
// of the block share it.
type claim struct {
	block     int64
	off       int64
	users     int  // guarded by space.mu
	published bool // guarded by space.mu
}

// take returns size bytes of proven-zero space, growing the file when the tail
// is used up and ahead of that when it runs low. Called without space.mu.
func (im *Image) take(size int64) (int64, error) {
	s := &im.space
	for {
		s.mu.Lock()
		off, ok := s.carve(size)
		if ok && s.growth == nil && !im.opts.noAhead && s.end-s.next+s.free.total < im.growthStep/2 {
			im.startGrowth(size)
		}
		if ok {
			s.mu.Unlock()
			return off, nil
		}
		if s.growth == nil {
			im.startGrowth(size)
		}
		g := s.growth
		s.mu.Unlock()
		<-g.done
		if g.err != nil {
			return 0, g.err
		}
	}
}

// carve takes size bytes from the free ranges or the tail. Caller holds mu.
func (s *space) carve(size int64) (int64, bool) {
	if off, ok := s.free.take(size); ok {
		return off, true
	}
	if s.end-s.next < size {
		return 0, false
	}
	off := s.next
	s.next += size
	return off, true
}

// release takes proven-zero space back. What ends where the tail begins
// becomes part of it. Caller holds mu.
func (s *space) release(e extent) {
	if e = s.free.put(e); e.end() == s.next {
		s.free.drop(e.off)
		s.next = e.off
	}
}

// startGrowth extends the file in the background by a step, and by at least
// need bytes. Caller holds space.mu and has seen that no growth is under way.
func (im *Image) startGrowth(need int64) {
	s := &im.space
	g := &growth{done: make(chan struct{})}
	s.growth = g
	target := s.end + roundUp(max(im.growthStep, need), ondisk.MiB)
	im.background.Go(func() {
		g.err = im.extend(target)
		s.mu.Lock()
		if g.err == nil {
			s.end = target
		}
		s.growth = nil
		s.mu.Unlock()
		close(g.done)
	})
}

// extend: size, sync. Only then may the space be handed out, or a log entry
// name the new size as flushed (I-LOG-6).
func (im *Image) extend(target int64) error {
	if target > maxFileSize {
		return fmt.Errorf("%s: grow the file to %#x: more than %#x: %w", im.name, target, int64(maxFileSize), ErrUnsupported)
	}
	if err := im.f.Truncate(target); err != nil {
		return err
	}
	deathpoint.Reach(deathpoint.FileGrown)
	return im.sync(syncGrowth)
}

// claimBlock returns the claim on a block without space, shared with every
// other writer of it; nil when the block got its space meanwhile.
func (im *Image) claimBlock(block int64) (*claim, error) {
	s := &im.space
	for {
		s.mu.Lock()
		if c := s.pending[block]; c != nil {
			c.users++
			s.mu.Unlock()
			return c, nil
		}
		if present(im.payload(block)) {
			s.mu.Unlock()
			return nil, nil
		}
		s.mu.Unlock()

		off, err := im.take(im.blockSize)
		if err != nil {
			return nil, fmt.Errorf("%s: allocate payload block %d: %w", im.name, block, err)
		}
		s.mu.Lock()
		if s.pending[block] == nil && !present(im.payload(block)) {
			c := &claim{block: block, off: off, users: 1}
			s.pending[block] = c
			s.mu.Unlock()
			return c, nil
		}
		s.release(extent{off, im.blockSize}) // another writer was first; still proven zero
		s.mu.Unlock()
	}
}

// publish makes a write's mapping visible: journal, then memory (I-MAP-1). The
// payload has been written.
func (im *Image) publish(w *written) error {
	for {
		err := im.tryPublish(w)
		if err == nil {
			return nil
		}
		if isJournalFull(err) {
			err = im.commit()
		}
		if err != nil {
			im.abandon(w)
			return err
		}
	}
}

func (im *Image) tryPublish(w *written) error {
	s := &im.space
	s.mu.Lock()
	defer s.mu.Unlock()
	b := im.bat.Load()
	if c := w.claim; c != nil && !c.published {
		if err := im.publishNew(b, w); err != nil {
			return err
		}
		c.published = true
		delete(s.pending, c.block)
	}
	if im.metadata.params.HasParent {
		if err := im.publishBits(b, w); err != nil {
			return err
		}
	}
	if w.claim != nil {
		w.claim.users--
	}
	return nil
}

// abandon gives a claim up after a failed write. Space that nobody published
// may hold anything now and is tainted (I-SPACE-3).
func (im *Image) abandon(w *written) {
	if w.claim == nil {
		return // what it wrote no bit shows
	}
	im.space.mu.Lock()
	defer im.space.mu.Unlock()
	im.drop(w.claim)
}

// drop removes one user of c. Caller holds space.mu.
func (im *Image) drop(c *claim) {
	s := &im.space
	c.users--
	if c.users > 0 || c.published {
		return
	}
	delete(s.pending, c.block)
	if e := (extent{c.off, im.blockSize}); im.opts.omit.has(orderTaint) {
		s.release(e)
	} else {
		im.retire(e)
	}
}
