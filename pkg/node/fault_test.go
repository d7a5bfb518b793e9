package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// The state directory's disk fails at each single change, once: the call
// fails or not, and the next try leads to where it should (I-NODE-6).
func TestJournalFaults(t *testing.T) {
	cause := errors.New("made by the test")
	calls := []string{"stage", "publish", "unpublish", "unstage"}
	for at := 1; ; at++ {
		r := newRig(t)
		r.create("vol", 16*mib, pool.Params{})
		r.start()
		n := 0
		r.m.journal.tree.Step = func(string, string) error {
			if n++; n == at {
				return cause
			}
			return nil
		}
		for _, c := range calls {
			var err error
			for range 3 {
				if err = r.call(r.m, c, "block"); err == nil {
					break
				}
				if !errors.Is(err, cause) && !errors.Is(err, ErrNotStaged) {
					t.Fatalf("change %d, %s: %v", at, c, err)
				}
			}
			if err != nil {
				t.Fatalf("change %d, %s never succeeds: %v", at, c, err)
			}
		}
		r.nothingLeft()
		r.stop()
		if n < at {
			if at < 10 {
				t.Fatalf("only %d changes", at)
			}
			return
		}
	}
}

// Calls from all sides end, leave the state right, and race nowhere.
func TestConcurrentCalls(t *testing.T) {
	r := newRig(t)
	const volumes, callers = 3, 3
	for i := range volumes {
		r.create(fmt.Sprint("vol", i), sizes["ext4"], pool.Params{})
	}
	r.start()
	r.m.step = func(string) {}
	var wg sync.WaitGroup
	for i := range volumes * callers {
		wg.Go(func() {
			id := fmt.Sprint("vol", i%volumes)
			rnd := rand.New(rand.NewPCG(uint64(i), 7))
			for range 12 {
				r.anyCall(id, rnd)
			}
		})
	}
	wg.Wait()
	for i := range volumes {
		id := fmt.Sprint("vol", i)
		r.mustUnpublish(r.publishTo(id, id+"a"))
		r.mustUnpublish(r.publishTo(id, id+"b"))
		r.mustUnstage(r.stage(id, "ext4"))
	}
	r.nothingLeft()
}

func (r *rig) anyCall(id string, rnd *rand.Rand) {
	ctx := context.Background()
	s := r.stage(id, "ext4")
	p := r.publishTo(id, id+[]string{"a", "b"}[rnd.IntN(2)])
	var err error
	switch rnd.IntN(6) {
	case 0, 1:
		err = r.m.Stage(ctx, s)
	case 2:
		err = r.m.Publish(ctx, p)
	case 3:
		err = r.m.Unpublish(ctx, id, p.TargetPath)
	case 4:
		err = r.m.Unstage(ctx, id, s.StagingPath)
	case 5:
		_, err = r.m.Stats(ctx, id, s.StagingPath)
	}
	for _, ok := range []error{nil, ErrPending, ErrNotStaged, ErrBusy, ErrNotFound} {
		if errors.Is(err, ok) {
			return
		}
	}
	// A statfs that raced with the unmount.
	if !errors.Is(err, os.ErrNotExist) {
		r.t.Error(err)
	}
}

// gate is an image whose I/O waits while it is shut: a share that hangs.
type gate struct {
	image
	mu   sync.Mutex
	open *sync.Cond
	shut bool
}

func newGate(im image) *gate {
	g := &gate{image: im}
	g.open = sync.NewCond(&g.mu)
	return g
}

func (g *gate) set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = shut
	g.open.Broadcast()
}

func (g *gate) pass() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.shut {
		g.open.Wait()
	}
}

func (g *gate) ReadAt(p []byte, off int64) (int, error)  { g.pass(); return g.image.ReadAt(p, off) }
func (g *gate) WriteAt(p []byte, off int64) (int, error) { g.pass(); return g.image.WriteAt(p, off) }
func (g *gate) WriteZeroes(off, n int64) error           { g.pass(); return g.image.WriteZeroes(off, n) }
func (g *gate) Discard(off, n int64) error               { g.pass(); return g.image.Discard(off, n) }
func (g *gate) Flush() error                             { g.pass(); return g.image.Flush() }

// The share hangs: helpers are stuck in the kernel, and are reported and left
// behind (I-NODE-9). No call waits for ever, and when the share is back the
// volume can be unstaged with all its data.
func TestHangingShare(t *testing.T) {
	r := newRealRig(t, pool.Spec{Name: "pvc-1", Size: realSize("ext4")})
	r.start()
	var g *gate
	open := r.m.open
	r.m.open = func(ctx context.Context, id string, readOnly bool, j vhdx.Journal) (image, error) {
		im, err := open(ctx, id, readOnly, j)
		if err != nil {
			return nil, err
		}
		g = newGate(im)
		return g, nil
	}
	r.mustCall("ext4", "stage", "publish")
	t.Cleanup(func() { g.set(false) })
	path := r.publishTo(r.id, "a").TargetPath
	if err := os.WriteFile(filepath.Join(path, "file"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	g.set(true)
	if _, err := r.m.Stats(t.Context(), r.id, path); err != nil {
		t.Fatalf("stats asked the share: %v", err)
	}
	r.mustCall("ext4", "unpublish")
	patient := r.m.cfg.Deadlines
	r.m.cfg.Deadlines.Unmount, r.m.cfg.Deadlines.Sync = 500*time.Millisecond, 500*time.Millisecond
	wantErr(t, r.call(r.m, "unstage", "ext4"), ErrStuck)
	if err := r.call(r.m, "unstage", "ext4"); !errors.Is(err, ErrBusy) && !errors.Is(err, ErrStuck) {
		t.Fatal(err)
	}
	if !r.m.Held(r.id) {
		t.Fatal("the image was closed under its device")
	}
	r.m.cfg.Deadlines = patient // what does not hang may be slow
	g.set(false)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := r.call(r.m, "unstage", "ext4")
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	r.wantClean()
	r.mustCall("ext4", "stage", "publish")
	r.wantContent("ext4")
	r.mustCall("ext4", "unpublish", "unstage")
}

// A format that hangs ends in ErrUnfinished, not in a device that two serve.
func TestHangingFormat(t *testing.T) {
	r := newRealRig(t, pool.Spec{Name: "pvc-1", Size: realSize("ext4")})
	r.start()
	var g *gate
	open := r.m.open
	r.m.open = func(ctx context.Context, id string, readOnly bool, j vhdx.Journal) (image, error) {
		im, err := open(ctx, id, readOnly, j)
		if err != nil {
			return nil, err
		}
		g = newGate(im)
		return g, nil
	}
	hang := true
	r.m.step = func(s string) {
		if s == "mkfs" {
			g.set(hang)
		}
	}
	patient := r.m.cfg.Deadlines
	r.m.cfg.Deadlines.Unmount, r.m.cfg.Deadlines.Format = 500*time.Millisecond, 500*time.Millisecond
	wantErr(t, r.call(r.m, "stage", "ext4"), ErrUnfinished)
	if !r.m.Held(r.id) {
		t.Fatal("the image was closed under its device")
	}
	hang = false
	r.m.cfg.Deadlines = patient
	g.set(false)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := r.call(r.m, "stage", "ext4")
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	r.mustCall("ext4", "publish", "write", "unpublish", "unstage")
	r.wantClean()
}
