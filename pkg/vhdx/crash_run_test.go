package vhdx_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

// run is a workload under way.
type run struct {
	h       *harness
	kind    *workload
	file    *vhdxtest.File
	im      *vhdx.Image
	session *session
	at      place
	r       *rand.Rand
	last    vhdxtest.Extent
	round   int64 // of fill
	late    *lateWrite
}

func (w *run) seed(seed uint64) { w.r = rand.New(rand.NewPCG(seed, 1)) }

func (w *run) model() *vhdxtest.Model { return w.session.model }

// runWorkload does all of a workload and returns the first failure of it or of a cut.
func (h *harness) runWorkload(kind *workload) error {
	h.opts.GrowthStep = kind.growth
	h.opts = h.opts.MaxCopied(kind.maxCopied)
	file, s, err := h.makeImage(kind)
	if err != nil {
		return err
	}
	s.geometry = geometry{kind.blockSize(), kind.payload(), kind.sparse, kind.foreign != nil}
	w := &run{h: h, kind: kind, file: file, session: s}
	w.seed(h.seed)
	if err := w.open(nil); err != nil {
		return fmt.Errorf("open: %w", err)
	}
	err = w.operations(kind.warm)
	file.OnStep(h.hook(s, nil, h.effort.images))
	if err == nil {
		err = w.operations(kind.ops)
	}
	w.leave()
	if err2 := w.im.Close(); err == nil && err2 != nil {
		err = fmt.Errorf("close: %w", err2)
	}
	if err == nil {
		err = h.err()
	}
	if err == nil {
		err = w.session.checkClosed(w.file)
	}
	if err != nil && h.err() == nil {
		err = fmt.Errorf("seed %d, step %d: %w", h.seed, w.file.Step(), err)
	}
	return err
}

// operations does n things one after the other, or many at once.
func (w *run) operations(n int) error {
	if w.kind.writers > 0 {
		return w.together(n)
	}
	for range n {
		if w.h.err() != nil {
			return nil
		}
		if err := w.operation(); err != nil {
			return err
		}
		w.idle()
	}
	return w.checkLive()
}

func (w *run) operation() error {
	ws := w.kind.weights
	steps := []struct {
		weight int
		do     func() error
	}{
		{ws.write, func() error { return w.write(w.extent()) }},
		{ws.rewrite, w.rewrite},
		{ws.zero, func() error { return w.zero(w.im.WriteZeroes) }},
		{ws.discard, func() error { return w.zero(w.im.Discard) }},
		{ws.flush, w.flush},
		{ws.grow, w.grow},
		{ws.reopen, w.reopen},
		{ws.kill, w.kill},
		{ws.spoil, w.spoil},
		{ws.fill, w.fill},
		{ws.trim, w.trim},
		{ws.straggle, w.straggle},
		{ws.shrink, w.shrink},
		{ws.compact, w.compact},
	}
	total := 0
	for _, s := range steps {
		total += s.weight
	}
	pick := w.r.IntN(total)
	for _, s := range steps {
		if pick -= s.weight; pick < 0 {
			return s.do()
		}
	}
	return nil
}

// extent chooses a range: mostly in the workload's blocks, of any alignment to
// sectors, now and then over the edge of a block.
func (w *run) extent() vhdxtest.Extent {
	lss, bs, size := int64(w.im.LogicalSectorSize()), w.session.blockSize, w.im.Size()
	blocks := w.blocks()
	n := lss * (1 + w.r.Int64N(max(1, []int64{1, 4 * kib, 4 * kib, w.kind.maxIO}[w.r.IntN(4)]/lss)))
	n = min(n, max(lss, w.kind.maxIO/lss*lss))
	off := blocks[w.r.IntN(len(blocks))]*bs + w.r.Int64N(bs/lss)*lss
	switch w.r.IntN(4) {
	case 0:
		off = off / bs * bs
	case 1:
		off = off/bs*bs + w.r.Int64N(16)*lss
	case 2:
		off = max(0, off/bs*bs-n/2/lss*lss)
	}
	off = min(off, size-lss)
	return vhdxtest.Extent{Off: off, N: min(n, size-off)}
}

// blocks are those that the workload is about.
func (w *run) blocks() []int64 {
	if w.kind.blocks != nil {
		return w.kind.blocks
	}
	bs := w.session.blockSize
	return sequence(min(8, (w.im.Size()+bs-1)/bs), 1)
}

func (w *run) write(e vhdxtest.Extent) error {
	if e.N == 0 {
		return nil
	}
	w.last = e
	c := w.model().Write(e.Off, e.N)
	_, err := w.im.WriteAt(c.Data, e.Off)
	c.Done(err)
	return err
}

// rewrite writes where the last write was, unless that has been cut off.
func (w *run) rewrite() error {
	if w.last.Off+w.last.N > w.im.Size() {
		return nil
	}
	return w.write(w.last)
}

func (w *run) zero(do func(off, n int64) error) error {
	e := w.extent()
	if bs := w.session.blockSize; w.r.IntN(3) == 0 {
		e.Off = e.Off / bs * bs
		e.N = min(bs, w.im.Size()-e.Off)
	}
	c := w.model().Zero(e.Off, e.N)
	err := do(e.Off, e.N)
	c.Done(err)
	return err
}

func (w *run) flush() error {
	done := w.model().Flush()
	err := w.im.Flush()
	done(err)
	return err
}

func (w *run) grow() error {
	by := w.kind.grow
	if by == nil {
		by = growBy(mib)
	}
	return w.growTo(by(w.r, w.im.Size()))
}

func (w *run) growTo(size int64) error {
	c := w.model().Resize(size)
	err := w.im.Grow(size)
	c.Done(err)
	return err
}

// reopen closes the image and opens it again: a new session.
func (w *run) reopen() error {
	w.leave()
	done := w.model().Flush()
	err := w.im.Close()
	done(err)
	if err != nil {
		return fmt.Errorf("close: %w", err)
	}
	if err := w.session.checkClosed(w.file); err != nil {
		return err
	}
	w.file.OnStep(nil)
	w.file.Reopen()
	if err := w.open(nil); err != nil {
		return fmt.Errorf("reopen: %w", err)
	}
	return w.begin(false)
}

// kill ends the process but not the machine: the image is opened again as the
// kernel has it, with nothing more durable than before.
func (w *run) kill() error {
	w.leave()
	old, oldFile, left := w.im, w.file, w.session.journal
	w.file.OnStep(nil)
	w.file = w.file.Snapshot().Killed()
	if left != nil {
		var err error
		if left, err = left.left(); err != nil {
			return err
		}
	}
	old.Close() // of the dead process: on a file of its own
	oldFile.Close()
	during := *w.session
	during.journal = nil
	w.file.OnStep(w.h.hook(&during, append(w.at, cut{-1, -1}), 2))
	if err := w.open(left); err != nil {
		return fmt.Errorf("open after a kill: %w", err)
	}
	return w.begin(true)
}

// open opens the file, with a journal if the workload wants one.
func (w *run) open(left *journal) error {
	o := w.h.opts
	if w.kind.journal {
		if left == nil {
			var err error
			if left, err = newJournal(nil); err != nil {
				return err
			}
		}
		left.file, left.size = w.file, w.kind.blockSize()
		o = o.NoAhead() // a step of a growth behind an operation would be judged by what that has answered since
		o.Journal = left
	}
	w.session.journal = left
	var err error
	w.im, err = vhdx.Open(w.file, o)
	return err
}

// begin starts a session on an image that has just been opened.
func (w *run) begin(killed bool) error {
	seen := vhdxtest.NewObserved(w.im.Size())
	m, check := w.model(), w.model().CheckCut
	if w.kind.journal || !killed {
		check = m.CheckLive // nothing that was answered is lost
	}
	err := readEach(w.im, m.Touched(readSize), func(p []byte, off int64) error { return check(p, off, seen) })
	if err := errors.Join(err, m.CheckSize(seen.Size)); err != nil {
		return fmt.Errorf("reopened: %w", err)
	}
	before := w.session
	if killed { // what is not durable may still bring back the file of the session before
		w.session = before.again()
		w.session.model, w.session.killed = m.Restarted(seen), true
	} else if w.session, err = newSession(w.file.Clone(), m.After(seen), seen); err != nil {
		return err
	}
	w.session.journal, w.session.geometry = before.journal, before.geometry
	w.file.OnStep(w.h.hook(w.session, w.at, w.h.effort.images))
	return nil
}

// fill writes to a new block in each of many BAT pages, then flushes.
func (w *run) fill() error {
	fills := w.kind.fills
	blocks := w.kind.blocks[:fills[int(w.round)%len(fills)]]
	w.round++
	for _, block := range blocks {
		off := (block + w.round) * w.session.blockSize
		if err := w.write(vhdxtest.Extent{Off: off + w.r.Int64N(64)*512, N: 512}); err != nil {
			return err
		}
	}
	return w.flush()
}

// spoil fails a write half-way that needs new space, most of the time.
func (w *run) spoil() error {
	first := w.kind.payload()
	w.file.Inject(vhdxtest.Fault{
		Kind: vhdxtest.Write, N: 1, Err: errSpoilt, Short: w.r.Int64N(8) * 512,
		Match: func(off, _ int64) bool { return off >= first },
	})
	err := w.write(w.extent())
	w.file.ClearFaults()
	if !errors.Is(err, errSpoilt) {
		return fmt.Errorf("a write that failed answered: %w", err)
	}
	return nil
}

var errSpoilt = errors.New("spoilt on purpose")

// together lets several writers loose on their own sectors of the same blocks.
func (w *run) together(n int) error {
	errs := make([]error, w.kind.writers)
	var wg sync.WaitGroup
	for i := range errs {
		r := rand.New(rand.NewPCG(w.h.seed, uint64(i)+100))
		wg.Go(func() {
			for k := range n {
				if errs[i] = w.writerStep(r, int64(i), int64(k)); errs[i] != nil || w.h.err() != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errors.Join(errs...), w.checkLive())
}

// writerStep writes pieces of 4 KiB that are this writer's alone, in a block
// that all of them reach at about the same time.
func (w *run) writerStep(r *rand.Rand, writer, k int64) error {
	switch pick := r.IntN(w.kind.weights.write + w.kind.weights.flush); {
	case pick < w.kind.weights.flush:
		return w.flush()
	case writer == 0 && k%16 == 15: // one of them only: a size that loses a race is refused
		return w.growTo(w.im.Size() + 512*(1+r.Int64N(4*mib/512)))
	}
	block := w.kind.blocks[k*int64(len(w.kind.blocks))/int64(w.kind.ops)]
	piece := r.Int64N(16)*int64(w.kind.writers) + writer
	off := block*w.kind.blockSize() + piece*4*kib
	c := w.model().Write(off, 512*(1+r.Int64N(8)))
	_, err := w.im.WriteAt(c.Data, off)
	c.Done(err)
	return err
}

// checkLive reads what was written as the guest would.
func (w *run) checkLive() error {
	if w.h.err() != nil {
		return nil
	}
	err := readEach(w.im, w.model().Touched(readSize), w.session.checkLive)
	if err != nil {
		return fmt.Errorf("in use: %w", err)
	}
	return nil
}
