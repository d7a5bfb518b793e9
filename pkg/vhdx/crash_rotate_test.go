package vhdx_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

// world is several files on one machine, one of which a record names as the
// head. After each step of any of them its power is cut, in some ways, and its
// process killed.
type world struct {
	seed    uint64
	images  int // at each step
	opts    vhdx.OpenOptions
	model   *vhdxtest.Model
	journal *journal
	changed func(files memParents, head string) error // further judgement of what a cut left, in place of the usual

	mu     sync.Mutex
	files  map[string]*vhdxtest.File
	heads  []string // what the record may say: two while it is being written
	quiet  bool     // no cuts
	judged int
	failed error
}

// worldFile is a file of the world in use.
type worldFile struct {
	*vhdxtest.File
	step func()
}

func (f worldFile) WriteAt(p []byte, off int64) (int, error) {
	defer f.step()
	return f.File.WriteAt(p, off)
}

func (f worldFile) Sync() error {
	defer f.step()
	return f.File.Sync()
}

func (f worldFile) Truncate(size int64) error {
	defer f.step()
	return f.File.Truncate(size)
}

func (f worldFile) PunchHole(off, n int64) error {
	defer f.step()
	return f.File.PunchHole(off, n)
}

// worldWorkloads are what is done in a world.
var worldWorkloads = map[string]func(*world) error{"rotate": (*world).rotating, "merge": (*world).merging, "replace": (*world).replacing}

func newWorld(seed uint64) (*world, error) {
	w := &world{seed: seed, images: 5, files: map[string]*vhdxtest.File{}}
	w.opts = vhdx.OpenOptions{GrowthStep: 2 * mib}.NoTimers()
	var err error
	w.journal, err = newJournal(nil)
	return w, err
}

func (w *world) create(name string, o vhdx.CreateOptions) error {
	f := vhdxtest.NewFile(name)
	w.files[name], w.heads = f, []string{name}
	w.model = vhdxtest.NewModel(w.seed, o.Size)
	_, err := vhdx.CreateOn(f, o)
	return err
}

// open opens the head.
func (w *world) open() (*vhdx.Image, error) {
	o := w.opts
	w.mu.Lock()
	o.Parents, o.Journal = memParents(maps.Clone(w.files)), w.journal
	f := w.files[w.heads[0]]
	w.mu.Unlock()
	f.Reopen()
	return vhdx.Open(worldFile{f, w.step}, o)
}

// step cuts here.
func (w *world) step() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failed != nil || w.quiet {
		return
	}
	snaps := map[string]*vhdxtest.Snapshot{}
	for name, f := range w.files {
		snaps[name] = f.Snapshot()
	}
	for _, head := range w.heads {
		for i := range w.images {
			if err := w.judge(w.cut(snaps, i), head); err != nil {
				w.failed = fmt.Errorf("power cut %d, head %s: %w", i, head, err)
				return
			}
		}
		if err := w.judgeKilled(snaps, head); err != nil {
			w.failed = fmt.Errorf("killed, head %s: %w", head, err)
			return
		}
	}
}

func (w *world) cut(snaps map[string]*vhdxtest.Snapshot, i int) memParents {
	left := memParents{}
	for name, s := range snaps {
		left[name] = s.Image(s.Plan(w.seed+uint64(len(name)), i))
	}
	return left
}

// judge: the head that the record names opens, shows what it may, read-only
// and writable alike, and what is below it is clean (I-CHAIN-3).
func (w *world) judge(files memParents, head string) error {
	w.judged++
	o := w.opts
	o.Parents, o.ReadOnly = files, true
	im, err := vhdx.Open(files[head].Clone(), o)
	if err != nil {
		return fmt.Errorf("read-only: %w", err)
	}
	touched := w.model.Touched(readSize)
	seen, sum, err := observe(im, w.model, touched)
	if err := errors.Join(err, im.Close()); err != nil {
		return fmt.Errorf("read-only: %w", err)
	}
	o.ReadOnly = false
	if im, err = vhdx.Open(files[head], o); err != nil {
		return fmt.Errorf("writable: %w", err)
	}
	again := newContents()
	err = again.addEach(im, touched)
	if err := errors.Join(err, im.Close()); err != nil {
		return fmt.Errorf("writable: %w", err)
	}
	if again.sum.Sum64() != sum || im.Size() != seen.Size {
		return errors.New("a writable open shows something else than a read-only one")
	}
	if w.changed != nil {
		return w.changed(files, head)
	}
	for name, f := range files {
		if name >= head { // names grow with the chain
			continue
		}
		hs, err := vhdxtest.Headers(f)
		if err != nil {
			return err
		}
		if !hs[0].Clean() {
			return fmt.Errorf("%s, below the head, is not clean", name)
		}
	}
	return nil
}

func (w *world) judgeKilled(snaps map[string]*vhdxtest.Snapshot, head string) error {
	files := memParents{}
	for name, s := range snaps {
		files[name] = s.Killed()
	}
	o := w.opts
	o.Parents = files
	if w.journal != nil {
		left, err := w.journal.left()
		if err != nil {
			return err
		}
		o.Journal = left
	}
	im, err := vhdx.Open(files[head], o)
	if err != nil {
		return fmt.Errorf("opened by a successor: %w", err)
	}
	err = readEach(im, w.model.Touched(readSize), func(p []byte, off int64) error { return w.model.CheckLive(p, off, nil) })
	return errors.Join(err, im.Close())
}

func (w *world) write(im *vhdx.Image, r *rand.Rand) error {
	off := r.Int64N((im.Size()-64*kib)/512) * 512
	if r.IntN(3) > 0 {
		off = r.Int64N(6)*mib + r.Int64N(20)*512
	}
	if r.IntN(6) == 0 {
		n := min(512*(1+r.Int64N(2048)), im.Size()-off)
		c := w.model.Zero(off, n)
		err := im.Discard(off, n)
		c.Done(err)
		return err
	}
	c := w.model.Write(off, 512*(1+r.Int64N(40)))
	_, err := im.WriteAt(c.Data, off)
	c.Done(err)
	return err
}

func (w *world) flush(im *vhdx.Image) error {
	done := w.model.Flush()
	err := im.Flush()
	done(err)
	return err
}

// rotate puts a new child in the head's place.
func (w *world) rotate(im *vhdx.Image, n int, refuse error) error {
	name := fmt.Sprintf("layer-%d", n)
	f := vhdxtest.NewFile(name)
	w.mu.Lock()
	before := w.heads[0]
	w.mu.Unlock()
	if _, err := im.CreateChildOn(f, vhdx.ChildOptions{RelativePath: before, BlockSize: mib << (n % 3)}); err != nil {
		return err
	}
	w.mu.Lock()
	w.files[name] = f
	w.mu.Unlock()
	err := im.Rotate(worldFile{f, w.step}, func() error {
		w.mu.Lock()
		w.heads = append(w.heads, name)
		w.mu.Unlock()
		w.step()
		w.mu.Lock()
		defer w.mu.Unlock()
		w.heads = []string{name}
		if refuse != nil {
			w.heads = []string{before}
		}
		return refuse
	})
	if err != nil {
		w.mu.Lock()
		delete(w.files, name)
		w.mu.Unlock()
	}
	if refuse != nil && errors.Is(err, refuse) {
		return nil
	}
	return err
}

var errRecord = errors.New("the record cannot be written")

// rotating writes, rotates, is refused a rotation now and then, and reopens.
func (w *world) rotating() error {
	r := rand.New(rand.NewPCG(w.seed, 3))
	if err := w.create("layer-0", vhdx.CreateOptions{Size: 8*mib + 4096, BlockSize: mib}); err != nil {
		return err
	}
	im, err := w.open()
	if err != nil {
		return err
	}
	for n := 1; n <= 4 && err == nil; n++ {
		for range 2 + r.IntN(4) {
			err = errors.Join(err, w.write(im, r))
			if r.IntN(3) == 0 {
				err = errors.Join(err, w.flush(im))
			}
		}
		var refuse error
		if n == 2 {
			refuse = errRecord
		}
		err = errors.Join(err, w.rotate(im, n, refuse), w.write(im, r))
		if n == 3 && err == nil {
			done := w.model.Flush()
			err = im.Close()
			done(err)
			if err == nil {
				im, err = w.open()
			}
		}
		w.mu.Lock()
		err = errors.Join(err, w.failed)
		w.mu.Unlock()
	}
	if im == nil {
		return err
	}
	return errors.Join(err, im.Close(), w.failed)
}

// Cut or killed at any step of a rotation, what the record names opens and
// shows all that it must; the frozen head is clean.
func TestRotateCrash(t *testing.T) {
	skipSlowRace(t)
	seeds := uint64(6)
	if testing.Short() {
		seeds = 2
	}
	judged := 0
	for seed := range seeds {
		w, err := newWorld(seed + 1)
		if err == nil {
			err = w.rotating()
		}
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		judged += w.judged
	}
	t.Logf("%d images", judged)
}
