package vhdx_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

const (
	ki = 1 << 10
	mi = 1 << 20
	gi = 1 << 30
)

// workload is a kind of use of an image.
type workload struct {
	name   string
	create vhdx.CreateOptions
	growth int64
	// blocks are those that are written; weights say how often each thing is done.
	blocks  []int64
	weights weights
	maxIO   int64
	grow    func(r *rand.Rand, size int64) int64
	// warm operations run before the first cut, ops with cuts.
	warm, ops int
	writers   int   // at once; 0: one after the other
	images    int   // at each step; 0: as the harness says
	sparse    int   // of the steps that write payload only one in so many is cut
	fills     []int // blocks that one fill after the other writes
	journal   bool  // a kill loses nothing, at any step
}

type weights struct{ write, rewrite, zero, discard, flush, grow, reopen, kill, spoil, fill int }

var goOnWorkload = &workload{
	name:    "go on",
	weights: weights{write: 6, rewrite: 2, zero: 1, flush: 4, grow: 1},
	maxIO:   64 * ki,
}

func sequence(n, step int64) []int64 {
	var all []int64
	for i := range n {
		all = append(all, i*step)
	}
	return all
}

// growBy grows by up to n bytes.
func growBy(n int64) func(*rand.Rand, int64) int64 {
	return func(r *rand.Rand, size int64) int64 { return size + (1+r.Int64N(n/4096))*4096 }
}

var workloads = []*workload{
	{
		name:    "few blocks",
		create:  vhdx.CreateOptions{Size: 8*mi + 3*4096, BlockSize: mi},
		growth:  mi,
		blocks:  sequence(6, 1),
		weights: weights{write: 10, rewrite: 4, zero: 1, discard: 1, flush: 5, grow: 1, reopen: 1, kill: 1},
		maxIO:   64 * ki, ops: 60,
		grow: growBy(2 * mi),
	},
	{
		name:    "larger blocks, 4 KiB sectors",
		create:  vhdx.CreateOptions{Size: 64 * mi, BlockSize: 4 * mi, LogicalSectorSize: 4096},
		growth:  8 * mi,
		blocks:  sequence(8, 2),
		weights: weights{write: 10, rewrite: 2, zero: 2, discard: 2, flush: 6, reopen: 1},
		maxIO:   256 * ki, ops: 50,
	},
	{
		name:    "fixed",
		create:  vhdx.CreateOptions{Size: 3*mi + 512, BlockSize: mi, Fixed: true},
		growth:  2 * mi,
		blocks:  sequence(4, 1),
		weights: weights{write: 8, rewrite: 4, zero: 2, discard: 1, flush: 5, grow: 2, reopen: 1, kill: 1},
		maxIO:   32 * ki, ops: 45,
		grow: growBy(2 * mi),
	},
	{
		// Each block in a BAT page of its own: an entry of up to 17 sectors
		// a flush goes round a log of 256 in less than 20.
		name:    "log goes round",
		create:  vhdx.CreateOptions{Size: 24 * gi, BlockSize: mi},
		growth:  16 * mi,
		blocks:  append(append(sequence(44, 512), sequenceFrom(1, 44, 512)...), sequenceFrom(2, 44, 512)...),
		weights: weights{write: 20, flush: 1},
		maxIO:   512, warm: 150, ops: 170, images: 8,
	},
	{
		// Two flushes fill more than the log: room must be made before the second.
		name:    "log is full",
		create:  vhdx.CreateOptions{Size: 81 * gi, BlockSize: mi},
		growth:  256 * mi,
		blocks:  sequence(160, 512),
		weights: weights{fill: 1},
		ops:     4, images: 6, sparse: 16, fills: []int{110, 160},
	},
	{
		// One flush takes two entries, and room must be made before the second.
		name:    "more than the log",
		create:  vhdx.CreateOptions{Size: 127 * gi, BlockSize: mi},
		growth:  512 * mi,
		blocks:  sequence(254, 512),
		weights: weights{fill: 1},
		ops:     2, images: 4, sparse: 32, fills: []int{254},
	},
	{
		name:    "BAT moves",
		create:  vhdx.CreateOptions{Size: 127*gi + 512*mi, BlockSize: mi},
		growth:  4 * mi,
		blocks:  []int64{0, 1, 513, 131000},
		weights: weights{write: 8, rewrite: 2, flush: 4, grow: 3, reopen: 1, kill: 1},
		maxIO:   4 * ki, ops: 40,
		grow: growBy(gi),
	},
	{
		name:    "journal",
		create:  vhdx.CreateOptions{Size: 16 * mi, BlockSize: mi},
		growth:  256 * mi, // once: a step of the growth behind an operation would be judged by what that has answered since
		blocks:  sequence(16, 1),
		weights: weights{write: 12, rewrite: 2, flush: 3, kill: 1, reopen: 1},
		maxIO:   8 * ki, ops: 60, images: 4, journal: true,
	},
	{
		name:    "failing writes",
		create:  vhdx.CreateOptions{Size: 12 * mi, BlockSize: mi},
		growth:  2 * mi,
		blocks:  sequence(12, 1),
		weights: weights{write: 4, flush: 3, spoil: 3, reopen: 1},
		maxIO:   8 * ki, ops: 60, images: 6,
	},
	{
		name:    "writers at once",
		create:  vhdx.CreateOptions{Size: 16 * mi, BlockSize: 2 * mi},
		growth:  2 * mi,
		blocks:  sequence(8, 1),
		weights: weights{write: 4, flush: 1},
		maxIO:   4 * ki, ops: 40, writers: 3,
	},
}

func sequenceFrom(first, n, step int64) []int64 {
	all := sequence(n, step)
	for i := range all {
		all[i] += first
	}
	return all
}

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
}

func (w *run) seed(seed uint64) { w.r = rand.New(rand.NewPCG(seed, 1)) }

func (w *run) model() *vhdxtest.Model { return w.session.model }

// runWorkload does all of a workload and returns the first failure of it or of a cut.
func (h *harness) runWorkload(kind *workload) error {
	h.opts.GrowthStep = kind.growth
	file := vhdxtest.NewFile(fmt.Sprintf("%s-%d.vhdx", kind.name, h.seed))
	if _, err := vhdx.CreateOn(file, kind.create); err != nil {
		return fmt.Errorf("create: %w", err)
	}
	model := vhdxtest.NewModel(h.seed, kind.create.Size)
	s, err := newSession(file.Clone(), model, vhdxtest.NewObserved(kind.create.Size))
	s.geometry = geometry{kind.create.BlockSize, kind.payload(), kind.sparse}
	if err != nil {
		return err
	}
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
		{ws.rewrite, func() error { return w.write(w.last) }},
		{ws.zero, func() error { return w.zero(w.im.WriteZeroes) }},
		{ws.discard, func() error { return w.zero(w.im.Discard) }},
		{ws.flush, w.flush},
		{ws.grow, w.grow},
		{ws.reopen, w.reopen},
		{ws.kill, w.kill},
		{ws.spoil, w.spoil},
		{ws.fill, w.fill},
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
	blocks := w.kind.blocks
	if blocks == nil {
		blocks = sequence(min(8, (size+bs-1)/bs), 1)
	}
	n := lss * (1 + w.r.Int64N(max(1, []int64{1, 4 * ki, 4 * ki, w.kind.maxIO}[w.r.IntN(4)]/lss)))
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
		by = growBy(mi)
	}
	size := by(w.r, w.im.Size())
	c := w.model().Resize(size)
	err := w.im.Grow(size)
	c.Done(err)
	return err
}

// reopen closes the image and opens it again: a new session.
func (w *run) reopen() error {
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
		left.file, left.size = w.file, w.kind.create.BlockSize
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
	_, err := readEach(w.im, m.Touched(readSize), func(p []byte, off int64) error { return check(p, off, seen) })
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

// payload is where the payload blocks begin, as long as the BAT does not move.
func (k *workload) payload() int64 {
	entries := (k.create.Size + k.create.BlockSize - 1) / k.create.BlockSize
	return 3*mi + (entries*8+mi)/mi*mi
}

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
	if r.IntN(w.kind.weights.write+w.kind.weights.flush) < w.kind.weights.flush {
		return w.flush()
	}
	block := w.kind.blocks[k*int64(len(w.kind.blocks))/int64(w.kind.ops)]
	piece := r.Int64N(16)*int64(w.kind.writers) + writer
	off := block*w.kind.create.BlockSize + piece*4*ki
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
	_, err := readEach(w.im, w.model().Touched(readSize), w.session.checkLive)
	if err != nil {
		return fmt.Errorf("in use: %w", err)
	}
	return nil
}
