package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// smallShare mounts a filesystem of 300 MiB at dir.
func smallShare(t *testing.T) func(dir string) {
	return func(dir string) {
		backing := filepath.Join(t.TempDir(), "share.img")
		err := errors.Join(os.WriteFile(backing, nil, 0o600), os.Truncate(backing, 300*mib), os.MkdirAll(dir, 0o700))
		if err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"mkfs.xfs", "-q", backing}, {"mount", "-o", "loop", backing, dir}} {
			if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %v: %s", args, err, out)
			}
		}
	}
}

// spare takes all space of the share but some, until it is removed.
func (r *rig) spare(leave int64) (remove func()) {
	r.t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(r.path("real-pool"), &st); err != nil {
		r.t.Fatal(err)
	}
	path := r.path("real-pool", "spare")
	f, err := os.Create(path)
	if err == nil {
		err = errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-leave), f.Close())
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return func() {
		r.t.Helper()
		if err := os.Remove(path); err != nil {
			r.t.Fatal(err)
		}
	}
}

// pod is a process that writes to a volume.
func pod(t *testing.T, path string, args ...string) (wait func() error) {
	t.Helper()
	cmd := exec.Command("dd", append([]string{"if=/dev/urandom", "of=" + path, "bs=1M"}, args...)...)
	out := new(strings.Builder)
	cmd.Stderr = out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		ended <- err
	}()
	return func() error { return <-ended }
}

// soon waits until something holds.
func soon(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for range 3000 {
		if holds() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("it never holds that %s", what)
}

func (r *rig) state() State {
	for _, s := range r.m.Volumes() {
		if s.VolumeID == r.id {
			return s.State
		}
	}
	return ""
}

// wantGone fails if anything but the share is left, or the image is not clean.
func (r *rig) wantGone() {
	r.t.Helper()
	if at := r.mounts(); len(at) != 1 || len(r.m.Volumes()) > 0 || r.m.Held(r.id) {
		r.t.Fatalf("left: mounts %q, volumes %v", at, r.m.Volumes())
	}
	r.qemuCheck()
}

func holdSpec() pool.Spec {
	return pool.Spec{Name: "v", Size: gib, Params: pool.Params{BlockSize: mib}}
}

// A volume whose share is full is paused: it can be read, and cannot be taken
// down, grown or synced; it is so for the next plugin too; and with room it goes on.
func TestPausedVolume(t *testing.T) {
	r := newKeptRigOn(t, holdSpec(), smallShare(t))
	r.start()
	q := r.stage(r.id, "ext4")
	r.mustStage(q)
	writeFile(t, filepath.Join(q.StagingPath, "old"), "there before")
	remove := r.spare(40 * mib)
	wait := pod(t, filepath.Join(q.StagingPath, "new"), "count=80", "oflag=direct")
	soon(t, "it is paused", func() bool { return r.state() == StatePaused && r.m.Paused(r.id).On() })
	refused := func() {
		t.Helper()
		err := r.m.Unstage(t.Context(), r.id, q.StagingPath)
		wantErr(t, err, ErrPaused)
		wantErr(t, err, unix.ENOSPC)
		_, err = r.m.Expand(t.Context(), r.id, q.StagingPath)
		wantErr(t, err, ErrPaused)
		if out, err := exec.Command("cat", filepath.Join(q.StagingPath, "old")).Output(); err != nil || string(out) != "there before" {
			t.Fatalf("reads %q, %v", out, err)
		}
		r.mustStage(q) // is still so
	}
	refused()
	for range 2 {
		if err := r.m.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.m = nil
		r.wantResumed()
		soon(t, "it is paused again", func() bool { return r.state() == StatePaused })
		refused()
	}
	remove()
	if err := wait(); err != nil {
		t.Fatalf("the pod: %v", err)
	}
	soon(t, "it is served again", func() bool { return r.state() == StateServing })
	r.mustUnstage(q)
	r.wantGone()
}

// What is dirty in the page cache has no space: Unstage finds out, gives up and
// leaves the volume mounted; with room it comes to its end.
func TestUnstageRunsIntoAFullShare(t *testing.T) {
	r := newRealRigOn(t, holdSpec(), smallShare(t))
	r.start()
	q := r.stage(r.id, "ext4")
	r.mustStage(q)
	remove := r.spare(20 * mib)
	if err := pod(t, filepath.Join(q.StagingPath, "dirty"), "count=60")(); err != nil {
		t.Fatal(err)
	}
	err := r.m.Unstage(t.Context(), r.id, q.StagingPath)
	wantErr(t, err, ErrPaused)
	if at := r.mounts(); len(at) != 2 {
		t.Fatalf("after a failed Unstage these are mounted: %q", at)
	}
	remove()
	soon(t, "it can be unstaged", func() bool {
		if err = r.m.Unstage(t.Context(), r.id, q.StagingPath); err != nil && !errors.Is(err, ErrPaused) && !errors.Is(err, ErrBusy) {
			t.Fatal(err)
		}
		return err == nil
	})
	r.wantGone()
}

// The way out without room: the volume is told to fail, at once, and goes.
func TestPausedVolumeIsToldToFail(t *testing.T) {
	r := newRealRigOn(t, holdSpec(), smallShare(t))
	r.start()
	q := r.stage(r.id, "ext4")
	r.mustStage(q)
	r.spare(20 * mib)
	wait := pod(t, filepath.Join(q.StagingPath, "new"), "count=60", "oflag=direct")
	soon(t, "it is paused", func() bool { return r.state() == StatePaused })
	fails := pool.OnFullError
	if _, err := r.real.set.Modify(t.Context(), r.id, pool.Change{OnFull: &fails}); err != nil {
		t.Fatal(err)
	}
	if err := r.m.ApplyLimits(t.Context(), r.id); err != nil {
		t.Fatal(err)
	}
	if err := wait(); err == nil {
		t.Fatal("the pod did not see an error")
	}
	if s := r.state(); s != StateServing {
		t.Fatalf("the volume is %s", s)
	}
	r.mustUnstage(q)
	r.wantGone()
}

// The last way out, by hand: the connection is aborted, and what is left of the
// volume can be unstaged.
func TestForcedDetachInAPause(t *testing.T) {
	r := newRealRigOn(t, holdSpec(), smallShare(t))
	r.start()
	q := r.stage(r.id, "ext4")
	r.mustStage(q)
	connection := fuseConnection(t)
	r.spare(20 * mib)
	wait := pod(t, filepath.Join(q.StagingPath, "new"), "count=60", "oflag=direct")
	soon(t, "it is paused", func() bool { return r.state() == StatePaused })
	dir := r.path("fusectl")
	if err := errors.Join(os.Mkdir(dir, 0o700), unix.Mount("none", dir, "fusectl", 0, "")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, connection, "abort"), []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := wait(); err == nil {
		t.Fatal("the pod did not see an error")
	}
	soon(t, "it is dead", func() bool { return r.state() == StateDead })
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	r.mustUnstage(q)
	r.wantGone()
}

// fuseConnection is the number of the one connection that this process serves.
func fuseConnection(t *testing.T) string {
	t.Helper()
	infos, err := filepath.Glob("/proc/self/fdinfo/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range infos {
		b, _ := os.ReadFile(info)
		if _, rest, ok := strings.Cut(string(b), "fuse_connection:"); ok {
			return strings.Fields(rest)[0]
		}
	}
	t.Skip("this kernel does not tell which connection it is")
	return ""
}

// The device has what the record says, and follows it.
func TestSettings(t *testing.T) {
	r := newRig(t)
	r.create(r.id, 64*mib, pool.Params{})
	change := func(v pool.Volume) {
		t.Helper()
		v.ID, v.Size, v.Use = r.id, 64*mib, pool.UseNever
		v.Attachments = []pool.Attachment{{Node: "node-1"}}
		if err := r.vols.put(v); err != nil {
			t.Fatal(err)
		}
	}
	r.start()
	for _, c := range []struct {
		rec  pool.Volume
		want blockdev.Config
	}{
		{pool.Volume{}, blockdev.Config{Pause: true}},
		{pool.Volume{OnFull: pool.OnFullError, Limits: pool.Limits{IOPS: 1}}, blockdev.Config{Limits: blockdev.Limits{IOPS: 1}}},
		{pool.Volume{OnFull: pool.OnFullPause, Params: pool.Params{PauseLimit: 90}}, blockdev.Config{Pause: true, PauseLimit: 90 * time.Second}},
	} {
		change(c.rec)
		q := r.stage(r.id, "")
		q.Block = true
		r.mustStage(q)
		if got := r.att.last; got.Pause != c.want.Pause || got.PauseLimit != c.want.PauseLimit || got.Limits != c.want.Limits {
			t.Fatalf("record %+v: device %+v", c.rec, got)
		}
		r.mustUnstage(q)
	}
	if err := r.m.ApplyLimits(context.Background(), r.id); err != nil {
		t.Fatalf("of a volume that is not served: %v", err)
	}
}

// An image that hears of missing space only after its answer cannot pause: told
// to, it is refused; else it does without.
func TestCannotPause(t *testing.T) {
	m := &Manager{}
	for _, c := range []struct {
		o    pool.OnFull
		want error
	}{{pool.OnFullPause, ErrCannotPause}, {pool.OnFullDefault, nil}, {pool.OnFullError, nil}} {
		conf := blockdev.Config{Image: lateImage{}}
		err := m.settings(t.Context(), &conf, pool.Volume{OnFull: c.o})
		if !errors.Is(err, c.want) || conf.Pause {
			t.Fatalf("onFull %q: %v, pause %v", c.o, err, conf.Pause)
		}
	}
}

type lateImage struct{ blockdev.Image }

func (lateImage) ReadOnly() bool      { return false }
func (lateImage) CannotPause() string { return "it is buffered" }
