package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/keeper"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// wantWrong fails unless this is what is wrong with the volume.
func (r *rig) wantWrong(want ...control.Condition) {
	r.t.Helper()
	rep, err := r.m.Report(r.t.Context(), r.id)
	if err != nil {
		r.t.Fatal(err)
	}
	var got []control.Condition
	for _, e := range rep.Entries {
		if e.Message == "" {
			r.t.Errorf("%s says nothing", e.Reason)
		}
		got = append(got, control.Condition{Status: e.Status, Reason: e.Reason})
	}
	if d := cmp.Diff(want, got); d != "" {
		r.t.Fatalf("(-want +got)\n%s", d)
	}
}

// overwrite puts bytes into a file.
func overwrite(t *testing.T, file string, off, n int64) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(slices.Repeat([]byte{0xA5}, int(n)), off)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// An image that is damaged cannot be staged, and what is wrong with it is told
// until it can be again, or is not wanted here any more.
func TestReportOfDamagedImages(t *testing.T) {
	for name, tt := range map[string]struct {
		damage func(t *testing.T, file string)
		want   control.Condition
	}{
		"log":       {func(t *testing.T, f string) { overwrite(t, f, mib, mib) }, control.LogReplayFailed},
		"headers":   {func(t *testing.T, f string) { overwrite(t, f, 64<<10, 128<<10) }, control.HeaderCorrupt},
		"signature": {func(t *testing.T, f string) { overwrite(t, f, 0, 4096) }, control.HeaderCorrupt},
		"regions":   {func(t *testing.T, f string) { overwrite(t, f, 192<<10, 128<<10) }, control.MetadataCorrupt},
		"missing":   {func(t *testing.T, f string) { removeFile(t, f) }, control.ImageMissing},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRealRig(t, pool.Spec{Name: "pvc-1", Size: realSize("ext4")})
			r.kill(victim{FS: "ext4", Calls: []string{"stage", "publish", "write"}}) // its log is dirty
			r.start()
			v, err := r.real.set.Volume(t.Context(), r.id)
			if err != nil {
				t.Fatal(err)
			}
			whole, err := os.ReadFile(v.Image)
			if err != nil {
				t.Fatal(err)
			}
			tt.damage(t, v.Image)
			if err = r.call(r.m, "stage", "ext4"); err == nil {
				t.Fatal("staged all the same")
			}
			r.wantWrong(tt.want)
			r.wantState(StateFailed, err)
			r.m.forgetHistory(t.Context()) // it is wanted here
			r.wantWrong(tt.want)
			if err := os.WriteFile(v.Image, whole, 0o600); err != nil {
				t.Fatal(err)
			}
			r.mustCall("ext4", "stage")
			r.wantWrong()
			r.mustCall("ext4", "unstage")
			_, err = r.m.Report(t.Context(), r.id)
			wantErr(t, err, control.ErrNotHeld)
		})
	}
}

func removeFile(t *testing.T, file string) {
	t.Helper()
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
}

// The image below a volume is another one, or is not there.
func TestReportOfParents(t *testing.T) {
	for want, damage := range map[control.Condition]func(t *testing.T, file string){
		control.ParentMissing: removeFile,
		control.HeaderCorrupt: func(t *testing.T, f string) { overwrite(t, f, 64<<10, 128<<10) },
	} {
		t.Run(want.Reason, func(t *testing.T) {
			r := newRealRig(t, pool.Spec{Name: "pvc-1", Size: realSize("block")})
			r.start()
			frozen, err := r.real.set.Volume(t.Context(), r.id)
			if err != nil {
				t.Fatal(err)
			}
			snap, err := r.real.set.ReserveSnapshot(t.Context(), pool.SnapshotSpec{Name: "s", Volume: r.id})
			if err == nil {
				_, err = r.real.set.Cut(t.Context(), snap.ID, pool.Live{})
			}
			if err != nil {
				t.Fatal(err)
			}
			damage(t, frozen.Image)
			if err := r.call(r.m, "stage", "block"); err == nil {
				t.Fatal("staged all the same")
			}
			r.wantWrong(want)
		})
	}
}

// The filesystem on a served device stops for an error; staged anew it is well.
func TestReportOfAFilesystemThatStopped(t *testing.T) {
	for _, fsType := range []string{"ext4", "xfs"} {
		t.Run(fsType, func(t *testing.T) {
			r := newRig(t)
			s := r.staged(fsType)
			r.m.lookAtFilesystems(t.Context())
			r.wantWrong()
			r.shutDown(fsType, s.StagingPath)
			r.m.lookAtFilesystems(t.Context())
			r.wantWrong(control.FilesystemReadOnly)
			r.wantState(StateReadOnly, ErrReadOnlyRemount)
			r.mustStage(s)
			r.wantWrong()
			r.mustUnstage(s)
			if got := r.m.Volumes(); len(got) != 0 {
				t.Fatalf("%+v", got)
			}
			r.nothingLeft()
		})
	}
}

// Somebody else has the image.
func TestReportOfALeaseHeldElsewhere(t *testing.T) {
	r := newRealRig(t, pool.Spec{Name: "pvc-1", Size: realSize("block")})
	p, err := pool.Open(pool.Options{Name: "default", Dir: r.path("real-pool"), Holder: "node-2"})
	if err != nil {
		t.Fatal(err)
	}
	other, err := pool.NewSet(p)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	im, err := other.OpenImage(t.Context(), r.id, false, vhdx.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r.start()
	if err := r.call(r.m, "stage", "block"); err == nil {
		t.Fatal("staged all the same")
	}
	r.wantWrong(control.LeaseLost)
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	r.mustCall("block", "stage")
	r.wantWrong()
	r.mustCall("block", "unstage")
}

// What could not be staged is forgotten when it is another node's, or nobody's.
func TestFailuresAreForgotten(t *testing.T) {
	r := newRealRig(t, pool.Spec{Name: "pvc-1", Size: realSize("block")})
	r.start()
	gone := r.id[:len(r.id)-4] + "0000"
	r.m.stageEnded(r.id, syscall.EIO)
	r.m.stageEnded(gone, syscall.EIO)
	r.m.forgetHistory(t.Context())
	r.wantWrong(control.PoolUnreachable)
	_, err := r.m.Report(t.Context(), gone)
	wantErr(t, err, control.ErrNotHeld)
	if err := r.real.set.Detach(t.Context(), r.id, "node-1"); err != nil {
		t.Fatal(err)
	}
	r.m.forgetHistory(t.Context())
	_, err = r.m.Report(t.Context(), r.id)
	wantErr(t, err, control.ErrNotHeld)
	// A share that does not answer proves nothing.
	for i := range 2 * maxFailures {
		r.m.stageEnded(fmt.Sprint("v", i), ErrStuck)
	}
	if n := len(r.m.failed); n != maxFailures {
		t.Errorf("%d are remembered", n)
	}
	_, err = r.m.Report(t.Context(), fmt.Sprint("v", 2*maxFailures-1))
	if err != nil {
		t.Error(err)
	}
	for _, passing := range []error{ErrPending, context.Canceled, pool.ErrNotFound, ErrNotAttached} {
		r.m.stageEnded("other", fmt.Errorf("stage: %w", passing))
	}
	if _, err := r.m.Report(t.Context(), "other"); !errors.Is(err, control.ErrNotHeld) {
		t.Error(err)
	}
}

func TestDiagnose(t *testing.T) {
	for _, tt := range []struct {
		state State
		err   error
		want  control.Condition
	}{
		{StateWaiting, errResuming, control.WaitingForServer},
		{StateWaiting, unserved(pool.ErrAway), control.PoolUnreachable},
		{StateWaiting, unserved(&vhdx.CorruptError{Structure: "log entry"}), control.LogReplayFailed},
		{StateQuarantined, unserved(ErrQuarantined), control.Quarantined},
		{StatePoisoned, fmt.Errorf("%w: %w", vhdx.ErrPoisoned, unix.ENOSPC), control.ImagePoisoned},
		{StateDead, fmt.Errorf("%w: %w", ErrDeviceDead, unix.EIO), control.DeviceLost},
		{StateDead, keeper.ErrNotFound, control.DeviceLost},
		{StateDead, blockdev.ErrGone, control.DeviceLost},
		{StateDead, fmt.Errorf("%w: %w", ErrDeviceDead, vhdx.ErrTakenOver), control.LeaseLost},
		{StateLeft, ErrNotStaged, control.LeftBehind},
		{StateFailed, ErrStuck, control.StageFailed},
		{StateFailed, &vhdx.CorruptError{Structure: "BAT entry 17"}, control.MetadataCorrupt},
		{StateFailed, &vhdx.CorruptError{Structure: "Parent Locator"}, control.MetadataCorrupt},
		{StateFailed, &vhdx.ParentError{Err: vhdx.ErrParentMismatch}, control.ParentMismatch},
		{StateFailed, &vhdx.ParentError{Err: vhdx.ErrParentRefused}, control.ParentRefused},
		{StateFailed, vhdx.ErrUnsupported, control.ImageUnsupported},
		{StateFailed, fmt.Errorf("%w: it holds xfs", ErrNoFilesystem), control.FilesystemUnusable},
		{StateFailed, pool.ErrDamaged, control.RecordDamaged},
		{StateFailed, fmt.Errorf("%w: %w", pool.ErrDamaged, fs.ErrNotExist), control.ImageMissing},
		{StateFailed, &pool.SpaceError{}, control.PoolFull},
		{StateFailed, &fs.PathError{Op: "open", Path: "/p", Err: unix.ESTALE}, control.PoolUnreachable},
		{StatePaused, fmt.Errorf("%w: %w", ErrPaused, unix.EDQUOT), control.PoolFull},
	} {
		got := wrong(tt.state, tt.err)
		if len(got) != 1 || got[0] != tt.want.Because(tt.err) {
			t.Errorf("%s, %v: %+v, want %+v", tt.state, tt.err, got, tt.want)
		}
	}
	for _, s := range []State{StateServing, StateChanging} {
		if got := wrong(s, nil); got != nil {
			t.Errorf("%s: %+v", s, got)
		}
	}
	for _, s := range States {
		if _, ok := orElse[s]; ok == (s == StateServing || s == StateChanging) {
			t.Errorf("%s shows nothing, or is no trouble", s)
		}
	}
}

// A filesystem that hangs holds up no report, and one helper at most waits for it.
func TestReportOfAFilesystemThatHangs(t *testing.T) {
	r := newRealRig(t, pool.Spec{Name: "pvc-1", Size: realSize("xfs")})
	r.start()
	r.mustCall("xfs", "stage")
	r.m.volumes[r.id].looking = true // as while a helper is stuck
	r.m.lookAtFilesystems(t.Context())
	r.wantWrong()
	r.m.volumes[r.id].looking = false
	writeFile(t, filepath.Join(r.stage(r.id, "").StagingPath, "file"), "content")
	r.m.lookAtFilesystems(t.Context())
	r.wantWrong()
	r.mustCall("xfs", "unstage")
}
