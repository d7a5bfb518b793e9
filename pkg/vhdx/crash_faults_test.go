package vhdx_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

// faulty is a workload that meets one fault.
type faulty struct {
	*run
	fault    vhdxtest.Fault
	struck   bool // the fault has struck
	told     bool // and a request has failed of it
	metadata bool // and it struck metadata or a sync: the image must be poisoned
}

var faultyWorkload = &workload{
	name:   "fault",
	create: vhdx.CreateOptions{Size: 6 * mib, BlockSize: mib},
	growth: mib,
	blocks: sequence(6, 1),
	maxIO:  16 * kib,
	grow:   growBy(2 * mib),
}

// faultyChild lies on a larger parent, and its disk's size changes in the script.
var faultyChild = &workload{
	name:   "fault in a child",
	create: vhdx.CreateOptions{Size: 10 * mib, BlockSize: 2 * mib},
	child:  &vhdx.ChildOptions{Size: 5*mib + 512, BlockSize: mib},
	growth: mib,
	blocks: sequence(10, 1),
	maxIO:  16 * kib,
	grow:   growBy(2 * mib),
}

// script is long enough to log, apply, grow, punch and reopen; the BAT stays
// where it is.
func (w *faulty) script() []func() error {
	write := func() error { return w.write(w.extent()) }
	discard := func() error { return w.zeroBlock(w.im.Discard) }
	zero := func() error { return w.zeroBlock(w.im.WriteZeroes) }
	compact := func() error { return w.compactUntil(gib) }
	return []func() error{
		write, write, w.flush, write, write, zero, w.flush, w.grow, discard, write, w.reopen,
		write, w.flush, discard, write, w.flush, w.grow, write, zero, write, w.flush, write,
		discard, compact, write, w.flush, write, w.shrink, write, compact, w.flush, write, compact,
	}
}

// zeroBlock zeroes the block that was written last, which has space.
func (w *faulty) zeroBlock(do func(off, n int64) error) error {
	off := w.last.Off / w.blockSize() * w.blockSize()
	n := min(w.blockSize(), w.im.Size()-off)
	c := w.model().Zero(off, n)
	err := do(off, n)
	c.Done(err)
	return err
}

func (w *faulty) blockSize() int64 { return w.session.blockSize }

// TestFaults: each operation of each kind fails once. A failed sync or metadata write
// poisons the image, everything else fails the request at hand only, and
// whatever the medium is in afterwards opens and shows what it may.
func TestFaults(t *testing.T) {
	skipSlowRace(t)
	for _, c := range []struct {
		kind vhdxtest.Kind
		err  error
	}{
		{vhdxtest.Write, syscall.EIO},
		{vhdxtest.Write, syscall.ENOSPC},
		{vhdxtest.Sync, syscall.EIO},
		{vhdxtest.Truncate, syscall.EIO},
		{vhdxtest.Truncate, syscall.ENOSPC},
		{vhdxtest.Punch, errors.ErrUnsupported},
		{vhdxtest.Punch, syscall.EIO},
		{vhdxtest.Zero, errors.ErrUnsupported},
		{vhdxtest.Zero, syscall.EIO},
		{vhdxtest.Allocate, syscall.ENOSPC},
		{vhdxtest.Read, syscall.EIO},
	} {
		t.Run(fmt.Sprintf("%v/%v", c.kind, c.err), func(t *testing.T) {
			t.Parallel()
			seeds := uint64(2)
			if testing.Short() {
				seeds = 1
			}
			for seed := range seeds {
				failEach(t, faultyWorkload, seed, c.kind, c.err)
			}
			if c.kind != vhdxtest.Write || !errors.Is(c.err, syscall.ENOSPC) { // sector bitmaps lie among payload: what is struck?
				failEach(t, faultyChild, seeds, c.kind, c.err)
			}
		})
	}
}

// failEach runs the script until the fault finds nothing to strike any more.
func failEach(t *testing.T, work *workload, seed uint64, kind vhdxtest.Kind, err error) {
	stride := 1
	if work.child != nil {
		stride = 7 // it takes long
	}
	for n := 1; ; n += stride {
		r := rand.New(rand.NewPCG(seed, uint64(n)))
		fault := vhdxtest.Fault{Kind: kind, N: n, Err: err, Short: []int64{0, 0, 512, 1536}[r.IntN(4)]}
		struck, err := failOnce(work, seed, fault)
		if err != nil {
			t.Fatalf("%s: script %d, %v number %d fails: %v", work.name, seed, kind, n, err)
		}
		if !struck {
			t.Logf("%s: script %d: %d operations or more could fail, one at a time", work.name, seed, n-stride)
			return
		}
	}
}

// failOnce runs the script with one fault and judges what comes of it.
func failOnce(work *workload, seed uint64, fault vhdxtest.Fault) (struck bool, err error) {
	h := newHarness(uint64(fault.N), newVisits())
	h.effort = effort{nested: 1000, replayed: 1, goOn: 8, ops: 6, depth: 1}
	h.opts.GrowthStep = work.growth
	w := &faulty{run: &run{h: h, kind: work}, fault: fault}
	w.seed(seed) // the same script for every N
	if w.file, w.session, err = h.makeImage(work); err != nil {
		return false, err
	}
	w.session.geometry = geometry{blockSize: work.blockSize()}
	if err := w.open(nil); err != nil {
		return false, err
	}
	fault.Match = w.strikes
	w.file.Inject(fault)
	err = w.steps()
	return w.struck, err
}

// strikes notes what the fault strikes when its time has come: Match is asked
// for each operation of the kind, in order.
func (w *faulty) strikes(off, _ int64) bool {
	w.fault.N--
	if w.fault.N == 0 {
		w.struck = true
		w.metadata = w.fault.Kind == vhdxtest.Sync || w.fault.Kind == vhdxtest.Write && off < w.kind.payload()
	}
	return true
}

func (w *faulty) steps() error {
	for i, step := range w.script() {
		err := step()
		switch {
		case err == nil:
		case w.struck && !w.told:
			err = w.judgeFailure(i, err)
		case w.im.Poisoned() == nil:
			err = fmt.Errorf("step %d: nothing failed in it: %w", i, err)
		default:
			err = nil // a failure behind the scenes, a growth's, has poisoned it
		}
		if err != nil {
			return err
		}
		if w.closed() {
			return w.afterwards()
		}
		if w.im.Poisoned() != nil {
			return w.poisoned(i)
		}
	}
	if w.metadata {
		return errors.New("a failed sync or metadata write has not poisoned the image")
	}
	if w.fault.Kind == vhdxtest.Read {
		w.file.ClearFaults()
	}
	if err := w.checkLive(); err != nil {
		return err
	}
	if err := w.im.Close(); err != nil && (!w.struck || w.told || !errors.Is(err, w.fault.Err)) {
		return fmt.Errorf("close: %w", err)
	}
	return w.afterwards()
}

// closed reports whether a reopen got no further than Close, or Open.
func (w *faulty) closed() bool {
	if w.im == nil {
		return true
	}
	_, err := w.im.ReadAt(make([]byte, 512), 0)
	return errors.Is(err, vhdx.ErrClosed)
}

// judgeFailure: the error tells its cause.
func (w *faulty) judgeFailure(i int, err error) error {
	w.told = true
	if !errors.Is(err, w.fault.Err) {
		return fmt.Errorf("step %d hides its cause: %w", i, err)
	}
	if errors.Is(err, syscall.ENOSPC) && errors.Is(err, vhdx.ErrPoisoned) && !w.metadata {
		return fmt.Errorf("step %d: want of space poisoned the image: %w", i, err)
	}
	return nil
}

// poisoned: writes and flushes are refused and tell the cause, reads go on.
func (w *faulty) poisoned(i int) error {
	if !w.struck {
		return fmt.Errorf("step %d: poisoned without a failure: %w", i, w.im.Poisoned())
	}
	w.im.Idle() // a growth behind the scenes may have been under way
	steps := w.file.Step()
	for name, err := range map[string]error{
		"write":   w.write(w.extent()),
		"flush":   w.flush(),
		"discard": w.zero(w.im.Discard),
		"zero":    w.zero(w.im.WriteZeroes),
		"grow":    w.grow(),
	} {
		if !errors.Is(err, vhdx.ErrPoisoned) || !errors.Is(err, w.fault.Err) {
			return fmt.Errorf("step %d: after the poisoning a %s answers: %w", i, name, err)
		}
	}
	if n := w.file.Step() - steps; n != 0 {
		return fmt.Errorf("step %d: the poisoned image changed the file %d times", i, n)
	}
	if err := w.checkLive(); err != nil {
		return fmt.Errorf("step %d: poisoned: %w", i, err)
	}
	if err := w.im.Close(); !errors.Is(err, vhdx.ErrPoisoned) {
		return fmt.Errorf("close of a poisoned image: %w", err)
	}
	return w.afterwards()
}

// afterwards cuts the power, then opens the file again in the same boot.
func (w *faulty) afterwards() error {
	snap := w.file.Snapshot()
	w.h.cut(snap, w.session, place{{snap.Step(), -1}}, 8)
	if err := w.h.err(); err != nil {
		return err
	}
	file := snap.Killed()
	im, err := vhdx.Open(file, w.h.opts)
	if err != nil {
		return fmt.Errorf("opened again: %w", err)
	}
	_, _, err = observe(im, w.model(), w.model().Touched(readSize))
	if err := errors.Join(err, im.Close()); err != nil {
		return fmt.Errorf("opened again: %w", err)
	}
	return nil
}

// A share that is full fails what needs new space and nothing else: flushes
// and writes to blocks that have space go on, and when there is room again,
// so does everything.
func TestFullShare(t *testing.T) {
	file := vhdxtest.NewFile("full.vhdx")
	if _, err := vhdx.CreateOn(file, vhdx.CreateOptions{Size: 64 * mib, BlockSize: mib}); err != nil {
		t.Fatalf("CreateOn: %v", err)
	}
	im, err := vhdx.Open(file, vhdx.OpenOptions{GrowthStep: mib})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	data := make([]byte, 4096)
	must := func(what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) || want == nil && err != nil {
			t.Fatalf("%s: %v, want %v", what, err, want)
		}
	}
	write := func(off int64) error { _, err := im.WriteAt(data, off); return err }
	must("write", write(0), nil)
	must("flush", im.Flush(), nil)
	file.Inject(
		vhdxtest.Fault{Kind: vhdxtest.Truncate, N: 1, Err: syscall.ENOSPC, Stay: true},
		vhdxtest.Fault{Kind: vhdxtest.Allocate, N: 1, Err: syscall.ENOSPC, Stay: true},
		vhdxtest.Fault{Kind: vhdxtest.Write, N: 1, Err: syscall.ENOSPC, Stay: true, Match: func(off, _ int64) bool { return off >= 5*mib }},
	)
	full := false
	for block := int64(1); block < 6; block++ {
		if err := write(block * mib); err != nil {
			must("write to a new block", err, syscall.ENOSPC)
			full = true
		}
		must("write to a block that has space", write(4096), nil)
		must("flush", im.Flush(), nil)
	}
	if !full {
		t.Fatalf("nothing needed new space")
	}
	must("poisoned", im.Poisoned(), nil)
	file.ClearFaults()
	for block := range int64(64) {
		must("write when there is room again", write(block*mib), nil)
	}
	must("flush", im.Flush(), nil)
	must("close", im.Close(), nil)
	if _, err := vhdxtest.ReadLayout(file.Clone()); err != nil {
		t.Fatal(err)
	}
}

// A share that is full, or a quota, may refuse even to take away what a killed
// server had grown the file by: nothing is written then, and the next write
// tries again.
func TestFullShareAtTheStart(t *testing.T) {
	file := vhdxtest.NewFile("full.vhdx")
	if _, err := vhdx.CreateOn(file, vhdx.CreateOptions{Size: 64 * mib, BlockSize: mib}); err != nil {
		t.Fatal(err)
	}
	im, err := vhdx.Open(file, vhdx.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	data := []byte("written when there is room again")
	if _, err := im.WriteAt(data, mib); err != nil {
		t.Fatal(err)
	}
	must(t, im.Flush())
	killed := file.Snapshot().Killed()
	size, err := killed.Size()
	if err != nil {
		t.Fatal(err)
	}
	must(t, killed.Truncate(size+32*mib))
	if im, err = vhdx.Open(killed, vhdx.OpenOptions{}); err != nil {
		t.Fatal(err)
	}
	killed.Inject(vhdxtest.Fault{Kind: vhdxtest.Truncate, N: 1, Err: syscall.EDQUOT, Stay: true})
	for range 3 {
		if _, err := im.WriteAt(data, 0); !errors.Is(err, syscall.EDQUOT) || errors.Is(err, vhdx.ErrPoisoned) {
			t.Fatalf("a write beyond the quota: %v", err)
		}
		must(t, im.Flush())
	}
	killed.ClearFaults()
	for off := range int64(8) {
		if _, err := im.WriteAt(data, off*mib); err != nil {
			t.Fatal(err)
		}
	}
	must(t, im.Close())
	if _, err := vhdxtest.ReadLayout(killed.Clone()); err != nil {
		t.Fatal(err)
	}
}
