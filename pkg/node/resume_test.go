package node

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/keeper"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// newKeptRig is a rig with all parts real and a keeper: this process.
func newKeptRig(t *testing.T, spec pool.Spec) *rig {
	t.Helper()
	return newKeptRigOn(t, spec, func(string) {})
}

func newKeptRigOn(t *testing.T, spec pool.Spec, prepare func(dir string)) *rig {
	t.Helper()
	r := newRealRigOn(t, spec, prepare)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- keeper.Serve(ctx, keeper.Options{Socket: r.path("keeper.sock")}) }()
	t.Cleanup(func() { // before the rig is cleaned: a device that waits cannot be detached
		if r.m != nil {
			r.cleanReal()
			r.m = nil
		}
		if r.kept != nil {
			_ = r.kept.Close()
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	for {
		c, err := keeper.Dial(t.Context(), r.path("keeper.sock"))
		if err == nil {
			r.kept = c
			return r
		}
		if !errors.Is(err, keeper.ErrUnavailable) {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
}

// mountIDs tells mounts apart that come and go at the same place.
func (r *rig) mountIDs() map[string]int {
	r.t.Helper()
	t, err := readMounts()
	if err != nil {
		r.t.Fatal(err)
	}
	ids := map[string]int{}
	for _, at := range r.mounts() {
		ids[at] = t.at(r.path(at)).ID
	}
	return ids
}

// wantResumed is the start of a plugin that finds the volume served before.
func (r *rig) wantResumed() {
	r.t.Helper()
	before := r.mountIDs()
	got := r.start()
	if len(got) != 1 || got[0].Outcome != OutcomeResumed || got[0].Err != nil {
		r.t.Fatalf("recovered %+v", got)
	}
	if d := cmp.Diff(before, r.mountIDs()); d != "" {
		r.t.Fatalf("mounts have changed:\n%s", d)
	}
}

// wantNothingKept fails if the keeper holds anything still.
func (r *rig) wantNothingKept() {
	r.t.Helper()
	items, err := r.kept.List(r.t.Context())
	if err != nil || len(items) > 0 {
		r.t.Fatalf("the keeper holds %+v, %v", items, err)
	}
}

// A plugin that is killed with dirty data on the way loses nothing of it, and
// the filesystem on top never notices (I-NODE-11).
func TestResume(t *testing.T) {
	for _, fsType := range []string{"ext4", "xfs", "btrfs", "block"} {
		t.Run(fsType, func(t *testing.T) {
			r := newKeptRig(t, pool.Spec{Name: "pvc-1", Size: realSize(fsType)})
			calls := []string{"stage", "publish", "write", "dirty"}
			if fsType == "block" {
				calls = calls[:3]
			}
			r.kill(victim{FS: fsType, Calls: calls})
			for range 3 {
				r.wantResumed()
				r.wantContent(fsType)
				r.leave()
				r.kill(victim{FS: fsType}) // resumes, and dies
			}
			r.wantResumed()
			if fsType != "block" {
				wantFile(t, filepath.Join(r.publishTo(r.id, "a").TargetPath, "dirty"), "not synced")
			}
			r.mustCall(fsType, "stage", "publish", "write", "unpublish", "unstage")
			r.wantClean()
			r.wantNothingKept()
			r.mustCall(fsType, "stage", "publish")
			r.wantContent(fsType)
			r.mustCall(fsType, "unpublish", "unstage")
			r.wantClean()
		})
	}
}

// leave ends this process's serving as its orderly end would.
func (r *rig) leave() {
	r.t.Helper()
	if err := r.m.Shutdown(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	r.m = nil
}

// Killed at any step of a volume's life or of its resuming, the next process
// goes on from there: what was staged is served without a remount, what was
// not is gone.
func TestResumeKilledAtEveryStep(t *testing.T) {
	types := []string{"ext4", "block"}
	if testing.Short() {
		types = types[:1]
	}
	calls := []string{"stage", "publish", "write", "cut", "unpublish", "unstage"}
	for _, fsType := range types {
		probe := newKeptRig(t, pool.Spec{Name: "pvc-1", Size: realSize(fsType)})
		for _, step := range append(probe.stepsOf(fsType, calls), "claimed", "reopened", "resumed") {
			t.Run(fsType+"/"+step, func(t *testing.T) {
				r := newKeptRig(t, pool.Spec{Name: "pvc-1", Size: realSize(fsType)})
				if slices.Contains([]string{"claimed", "reopened", "resumed"}, step) {
					r.kill(victim{FS: fsType, Calls: calls[:3]})
				}
				r.kill(victim{Step: step, FS: fsType, Calls: calls})
				for _, got := range r.start() {
					if got.Err != nil && !errors.Is(got.Err, keeper.ErrNotFound) && !errors.Is(got.Err, blockdev.ErrGone) || got.Outcome == OutcomeKept || got.Outcome == OutcomeWaiting {
						t.Fatalf("recover: %+v", got)
					}
				}
				// Kubelet repeats what was not answered.
				r.mustCall(fsType, "stage", "publish", "write", "cut", "write", "unpublish", "unstage")
				r.wantClean()
				r.wantNothingKept()
			})
		}
	}
}

// An image that somebody else has written to is not served, and says so.
func TestResumeTakenOver(t *testing.T) {
	for _, end := range []string{"killed", "released"} {
		t.Run(end, func(t *testing.T) {
			r := newKeptRig(t, pool.Spec{Name: "pvc-1", Size: realSize("ext4")})
			r.kill(victim{FS: "ext4", Calls: []string{"stage", "publish", "write"}})
			if end == "released" {
				r.wantResumed()
				r.leave()
			}
			im, err := r.real.set.OpenImage(t.Context(), r.id, false, vhdx.OpenOptions{})
			if err != nil {
				t.Fatal(err)
			}
			_, err = im.WriteAt(make([]byte, 4096), im.Size()-4096)
			if err = errors.Join(err, im.Close()); err != nil {
				t.Fatal(err)
			}
			got := r.start()
			if len(got) != 1 || got[0].Outcome != OutcomeTornDown {
				t.Fatalf("recovered %+v", got)
			}
			wantErr(t, got[0].Err, vhdx.ErrTakenOver)
			r.mustCall("ext4", "unpublish", "unstage", "stage", "publish")
			r.wantContent("ext4") // it was synced
			r.mustCall("ext4", "unpublish", "unstage")
			r.wantClean()
			r.wantNothingKept()
		})
	}
}

// A share that does not answer costs time, and nothing else.
func TestResumeWaits(t *testing.T) {
	r := newKeptRig(t, pool.Spec{Name: "pvc-1", Size: realSize("ext4")})
	r.kill(victim{FS: "ext4", Calls: []string{"stage", "publish", "write"}})
	m, err := r.open()
	if err != nil {
		t.Fatal(err)
	}
	r.m = m
	open := m.open
	m.open = func(context.Context, string, bool, vhdx.Journal) (image, error) { return nil, syscall.EIO }
	got, err := m.Recover(t.Context())
	if err != nil || len(got) != 1 || got[0].Outcome != OutcomeWaiting {
		t.Fatalf("recovered %+v, %v", got, err)
	}
	wantErr(t, got[0].Err, syscall.EIO)
	r.wantState(StateWaiting, syscall.EIO)
	for _, c := range []string{"stage", "publish", "unpublish", "unstage"} {
		err := r.call(m, c, "ext4")
		wantErr(t, err, ErrUnserved)
		wantErr(t, err, syscall.EIO)
	}
	_, err = m.Stats(t.Context(), r.id, r.publishTo(r.id, "a").TargetPath)
	wantErr(t, err, ErrUnserved)
	end, err := m.begin(r.id)
	for errors.Is(err, ErrPending) {
		time.Sleep(time.Millisecond)
		end, err = m.begin(r.id)
	}
	if err != nil {
		t.Fatal(err)
	}
	m.open = open
	end()
	r.mustCall("ext4", "publish")
	r.wantContent("ext4")
	r.mustCall("ext4", "unpublish", "unstage")
	r.wantClean()
	r.wantNothingKept()
}

// guardOf has the volumes given in quarantine.
type guardOf []string

func (g *guardOf) Blame(context.Context, string) (func(), error) { return func() {}, nil }
func (g *guardOf) Quarantined() []string                         { return *g }

// A volume in quarantine is not opened; freed, it goes on.
func TestResumeQuarantined(t *testing.T) {
	r := newKeptRig(t, pool.Spec{Name: "pvc-1", Size: realSize("ext4")})
	r.kill(victim{FS: "ext4", Calls: []string{"stage", "publish", "write"}})
	sick := guardOf{r.id}
	r.guard = &sick
	got := r.start()
	if len(got) != 1 || got[0].Outcome != OutcomeWaiting {
		t.Fatalf("recovered %+v", got)
	}
	wantErr(t, got[0].Err, ErrQuarantined)
	r.wantState(StateQuarantined, ErrQuarantined)
	wantErr(t, r.call(r.m, "unpublish", "ext4"), ErrQuarantined)
	end, err := r.m.begin(r.id)
	if err != nil {
		t.Fatal(err)
	}
	sick = nil
	end()
	r.mustCall("ext4", "publish")
	r.wantContent("ext4")
	r.mustCall("ext4", "unpublish", "unstage")
	r.wantClean()
}

// An orderly end leaves clean images and waiting devices.
func TestShutdownHandsOver(t *testing.T) {
	r := newKeptRig(t, pool.Spec{Name: "pvc-1", Size: realSize("xfs")})
	r.start()
	r.mustCall("xfs", "stage", "publish", "write", "dirty")
	r.leave()
	r.qemuCheck()
	r.wantResumed()
	wantFile(t, filepath.Join(r.publishTo(r.id, "a").TargetPath, "dirty"), "not synced")
	r.mustCall("xfs", "unpublish", "unstage")
	r.wantClean()
	r.wantNothingKept()
}

// What the keeper does not hold any more is torn down, as without a keeper.
func TestResumeWithoutItem(t *testing.T) {
	r := newKeptRig(t, pool.Spec{Name: "pvc-1", Size: realSize("ext4")})
	r.kill(victim{FS: "ext4", Calls: []string{"stage", "publish", "write"}})
	i, err := r.kept.Get(t.Context(), r.id)
	if err == nil {
		err = errors.Join(i.Close(), r.kept.Drop(t.Context(), r.id, i.Generation))
	}
	if err != nil {
		t.Fatal(err)
	}
	got := r.start()
	if len(got) != 1 || got[0].Outcome != OutcomeTornDown {
		t.Fatalf("recovered %+v", got)
	}
	wantErr(t, got[0].Err, keeper.ErrNotFound)
	r.mustCall("ext4", "stage", "publish")
	r.wantContent("ext4")
	r.mustCall("ext4", "unpublish", "unstage")
	r.wantClean()
}

// A volume staged read-only is resumed too, unless its image has changed.
func TestResumeReadOnly(t *testing.T) {
	r := newKeptRig(t, pool.Spec{Name: "pvc-1", Size: realSize("ext4")})
	r.start()
	r.mustCall("ext4", "stage", "publish", "write", "unpublish", "unstage")
	r.leave()
	if err := errors.Join(r.real.set.Detach(t.Context(), r.id, "node-1"), r.real.set.Attach(t.Context(), r.id, "node-1", true)); err != nil {
		t.Fatal(err)
	}
	r.ro = true
	r.kill(victim{FS: "ext4", Calls: []string{"stage", "publish"}})
	r.wantResumed()
	r.wantContent("ext4")
	r.mustCall("ext4", "unpublish", "unstage")
	r.wantClean()
	r.wantNothingKept()
}

// Without its keeper a volume is not staged: the next death would cost it. One
// that is served goes on, and is unstaged when the keeper is back.
func TestNoKeeper(t *testing.T) {
	r := newKeptRig(t, pool.Spec{Name: "pvc-1", Size: realSize("ext4")})
	r.start()
	away := &keeperAway{Keeper: r.m.cfg.Keeper}
	r.m.cfg.Keeper = away
	away.gone = true
	wantErr(t, r.call(r.m, "stage", "ext4"), ErrNoKeeper)
	away.gone = false
	r.mustCall("ext4", "stage", "publish", "write")
	away.gone = true
	r.mustCall("ext4", "unpublish", "publish")
	r.wantContent("ext4")
	r.mustCall("ext4", "unpublish")
	wantErr(t, r.call(r.m, "unstage", "ext4"), ErrNoKeeper)
	away.gone = false
	r.mustCall("ext4", "unstage")
	r.wantClean()
	r.wantNothingKept()
}

// keeperAway answers nothing while it is gone.
type keeperAway struct {
	Keeper
	gone bool
}

func (k *keeperAway) Put(ctx context.Context, i keeper.Item) error {
	if k.gone {
		return keeper.ErrUnavailable
	}
	return k.Keeper.Put(ctx, i)
}

func (k *keeperAway) Get(ctx context.Context, id string) (keeper.Item, error) {
	if k.gone {
		return keeper.Item{}, keeper.ErrUnavailable
	}
	return k.Keeper.Get(ctx, id)
}
