package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// killEnv makes this test binary a plugin that dies.
const killEnv = "NODE_TEST_KILL"

// victim says what the process does until it dies.
type victim struct {
	Dir  string
	Step string // dies there; "": after all calls
	// Delay kills it that long after the step has been reached.
	Delay time.Duration
	FS    string
	ID    string
	RO    bool
	Real  bool // pool, image and server are those of the product
	Calls []string
}

// runVictim is the main function of the process that dies.
func runVictim(plan string) {
	var v victim
	err := json.Unmarshal([]byte(plan), &v)
	if err != nil {
		panic(err)
	}
	r := rigAt(v.Dir)
	r.id, r.ro = v.ID, v.RO
	if v.Real {
		if r.real, err = newRealParts(v.Dir); err != nil {
			panic(err)
		}
	}
	m, err := r.open()
	if err != nil {
		panic(err)
	}
	die := func() { _ = unix.Kill(os.Getpid(), unix.SIGKILL); select {} }
	m.step = func(s string) {
		if s != v.Step {
			return
		}
		if v.Delay == 0 {
			die()
		}
		time.AfterFunc(v.Delay, die)
	}
	m.journal.tree.Step = func(op, _ string) error { m.step("journal " + op); return nil }
	if _, err := m.Recover(context.Background()); err != nil {
		panic(err)
	}
	for _, c := range v.Calls {
		if err := r.call(m, c, v.FS); err != nil {
			fmt.Println(c, err)
			os.Exit(1)
		}
	}
	if v.Step != "" && v.Delay == 0 {
		fmt.Println("never came to step", v.Step)
		os.Exit(1)
	}
	die()
}

// call makes one call for the rig's volume.
func (r *rig) call(m *Manager, name, fsType string) error {
	ctx := context.Background()
	s, p := r.stage(r.id, fsType), r.publishTo(r.id, "a")
	s.ReadOnly, p.ReadOnly = r.ro, r.ro
	if fsType == "block" {
		s.FSType, s.Block, p.Block = "", true, true
	}
	switch name {
	case "stage":
		return m.Stage(ctx, s)
	case "publish":
		return m.Publish(ctx, p)
	case "unpublish":
		return m.Unpublish(ctx, r.id, p.TargetPath)
	case "unstage":
		return m.Unstage(ctx, r.id, s.StagingPath)
	case "cut":
		snap, err := r.real.set.ReserveSnapshot(ctx, pool.SnapshotSpec{Name: "snap", Volume: r.id})
		if err != nil || snap.Taken {
			return err
		}
		_, err = m.Cut(ctx, r.id, snap.ID, control.CutOptions{Freeze: true, Limit: FreezeLimit})
		return err
	case "dirty": // written and never synced
		return os.WriteFile(filepath.Join(p.TargetPath, "dirty"), []byte("not synced"), 0o600)
	case "write":
		f := filepath.Join(p.TargetPath, "file")
		if fsType == "block" {
			f = p.TargetPath
		}
		w, err := os.OpenFile(f, os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = w.Write([]byte("content"))
		return errors.Join(err, w.Sync(), w.Close())
	}
	return errors.New("no such call")
}

// kill runs a victim to its end.
func (r *rig) kill(v victim) {
	r.t.Helper()
	v.Dir, v.ID, v.RO, v.Real = r.dir, r.id, r.ro, r.real != nil
	plan, err := json.Marshal(v)
	if err != nil {
		r.t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), killEnv+"="+string(plan))
	out, err := cmd.CombinedOutput()
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok || exit.Sys().(interface{ Signal() unix.Signal }).Signal() != unix.SIGKILL {
		r.t.Fatalf("victim %+v: %v: %s", v, err, out)
	}
}

// stepsOf gives all steps of the calls below at which a process can die.
func (r *rig) stepsOf(fsType string, calls []string) []string {
	r.t.Helper()
	r.start()
	var steps []string
	note := func(s string) {
		if !slices.Contains(steps, s) {
			steps = append(steps, s)
		}
	}
	r.m.step = note
	r.m.journal.tree.Step = func(op, _ string) error { note("journal " + op); return nil }
	for _, c := range calls {
		if err := r.call(r.m, c, fsType); err != nil {
			r.t.Fatal(err)
		}
	}
	r.stop()
	return steps
}

// Killed at any step of its life, a volume is staged again by the next
// process, and nothing of the first is left (I-NODE-1, I-NODE-2, I-NODE-3).
func TestKilledAtEveryStep(t *testing.T) {
	calls := []string{"stage", "publish", "write", "unpublish", "unstage"}
	types := []string{"ext4", "block"} // TestRealKilledAtEveryStep has them all
	if testing.Short() {
		types = types[:1]
	}
	for _, fsType := range types {
		size := sizes[fsType]
		if fsType == "block" {
			size = 16 * mib
		}
		probe := newRig(t)
		probe.create("vol", size, pool.Params{})
		for _, step := range probe.stepsOf(fsType, calls) {
			t.Run(fsType+"/"+step, func(t *testing.T) {
				r := newRig(t)
				r.create("vol", size, pool.Params{})
				r.kill(victim{Step: step, FS: fsType, Calls: calls})
				use := r.vols.use(t, "vol")
				for _, got := range r.start() {
					if got.Err != nil || got.Outcome == OutcomeKept {
						t.Fatalf("recover: %+v", got)
					}
				}
				r.nothingLeft()
				for _, c := range []string{"unpublish", "unstage", "stage", "publish"} { // as kubelet would
					if err := r.call(r.m, c, fsType); err != nil {
						t.Fatal(err)
					}
				}
				if use == pool.UseMounted && r.formatted() {
					t.Fatal("a used volume was formatted")
				}
				for _, c := range []string{"write", "unpublish", "unstage"} {
					if err := r.call(r.m, c, fsType); err != nil {
						t.Fatal(err)
					}
				}
				r.nothingLeft()
			})
		}
	}
}

// Killed while mkfs runs, the volume is formatted again, never wedged.
func TestKilledDuringFormat(t *testing.T) {
	for _, fsType := range fsTypes {
		for _, delay := range []time.Duration{time.Millisecond, 3 * time.Millisecond, 6 * time.Millisecond, 10 * time.Millisecond, 20 * time.Millisecond, 40 * time.Millisecond} {
			t.Run(fmt.Sprint(fsType, "/", delay), func(t *testing.T) {
				r := newRig(t)
				r.create("vol", sizes[fsType], pool.Params{})
				r.kill(victim{Step: "mkfs", Delay: delay, FS: fsType, Calls: []string{"stage"}})
				t.Log("use", r.vols.use(t, "vol"))
				r.start()
				r.nothingLeft()
				r.mustStage(r.stage("vol", fsType))
				r.mustUnstage(r.stage("vol", fsType))
				r.nothingLeft()
			})
		}
	}
}

// Data that a pod has synced survives the death of the plugin.
func TestDataSurvivesKill(t *testing.T) {
	for _, fsType := range fsTypes {
		r := newRig(t)
		r.create("vol", sizes[fsType], pool.Params{})
		r.kill(victim{FS: fsType, Calls: []string{"stage", "publish", "write"}})
		if len(r.mounts()) != 2 || r.loops() != 1 {
			t.Fatalf("the victim left mounts %q and %d devices", r.mounts(), r.loops())
		}
		got := r.start()
		if len(got) != 1 || got[0].Outcome != OutcomeTornDown {
			t.Fatalf("recovered %+v", got)
		}
		r.nothingLeft()
		s := r.stage("vol", fsType)
		r.mustStage(s)
		wantFile(t, filepath.Join(s.StagingPath, "file"), "content")
		r.mustUnstage(s)
	}
}
