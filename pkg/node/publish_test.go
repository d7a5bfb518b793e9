package node

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

func (r *rig) staged(fsType string, flags ...string) StageRequest {
	r.t.Helper()
	r.create("vol", sizes[fsType], pool.Params{})
	r.start()
	s := r.stage("vol", fsType)
	s.MountFlags = flags
	r.mustStage(s)
	return s
}

func TestPublishMatrix(t *testing.T) {
	r := newRig(t)
	r.staged("ext4")
	a, b := r.publishTo("vol", "a"), r.publishTo("vol", "b")
	r.mustPublish(a)
	ro := a
	ro.ReadOnly = true
	wantErr(t, r.m.Publish(t.Context(), ro), ErrIncompatible)
	r.mustPublish(b) // several writers on one node
	single := r.publishTo("vol", "c")
	single.SingleWriter = true
	wantErr(t, r.m.Publish(t.Context(), single), ErrSingleWriter)
	r.mustUnpublish(a)
	r.mustUnpublish(b)
	r.mustPublish(single)
	r.mustPublish(single)
	wantErr(t, r.m.Publish(t.Context(), a), ErrSingleWriter)
	r.mustUnpublish(single)
	r.mustPublish(a)

	for name, q := range map[string]PublishRequest{
		"block":      {VolumeID: "vol", StagingPath: a.StagingPath, TargetPath: r.path("x"), Block: true},
		"other type": {VolumeID: "vol", StagingPath: a.StagingPath, TargetPath: r.path("x"), FSType: "xfs"},
		"fs flag":    {VolumeID: "vol", StagingPath: a.StagingPath, TargetPath: r.path("x"), MountFlags: []string{"data=journal"}},
	} {
		if err := r.m.Publish(t.Context(), q); !errors.Is(err, ErrIncompatible) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, q := range map[string]PublishRequest{
		"no staging path":    {VolumeID: "vol", TargetPath: r.path("x")},
		"other staging path": {VolumeID: "vol", StagingPath: r.path("other"), TargetPath: r.path("x")},
		"unknown volume":     {VolumeID: "unknown", StagingPath: r.path("other"), TargetPath: r.path("x")},
	} {
		if err := r.m.Publish(t.Context(), q); !errors.Is(err, ErrNotStaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := os.Stat(r.path("x")); !errors.Is(err, os.ErrNotExist) {
		t.Fatal("a refused publish made the target")
	}
}

func TestPublishFlags(t *testing.T) {
	r := newRig(t)
	// Without SELinux mount(8) leaves a context out; with it kubelet gives it twice.
	context := `context="system_u:object_r:container_file_t:s0:c1,c2"`
	r.staged("ext4", context, "nodev,commit=30")
	p := r.publishTo("vol", "a/b/c")
	p.ReadOnly, p.MountFlags = true, []string{context, "noexec", "noatime", "commit=30"}
	r.mustPublish(p)
	tab, err := readMounts()
	if err != nil {
		t.Fatal(err)
	}
	got := tab.at(p.TargetPath).Options
	for _, want := range []string{"ro", "nodev", "noexec", "noatime"} {
		if !has(got, want) {
			t.Errorf("no %s in %s", want, got)
		}
	}
	if err := os.WriteFile(filepath.Join(p.TargetPath, "x"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Fatalf("write through a read-only target: %v", err)
	}
	writeFile(t, filepath.Join(p.StagingPath, "x"), "staging is still writable")
	// Somebody made the target writable.
	r.run("mount", "-o", "remount,bind,rw", p.TargetPath)
	wantErr(t, r.m.Publish(t.Context(), p), ErrIncompatible)
	r.mustUnpublish(p)
}

func TestTargetsInTheWay(t *testing.T) {
	r := newRig(t)
	r.staged("ext4")
	p := r.publishTo("vol", "a")
	if err := os.MkdirAll(p.TargetPath, 0o750); err != nil {
		t.Fatal(err)
	}
	r.mustPublish(p) // an empty directory is what kubelet may leave
	r.mustUnpublish(p)

	writeFile(t, p.TargetPath, "somebody's data")
	if err := r.m.Publish(t.Context(), p); err == nil || errors.Is(err, ErrPending) {
		t.Fatalf("published over a file: %v", err)
	}
	if err := r.m.Unpublish(t.Context(), "vol", p.TargetPath); err == nil {
		t.Fatal("a file with data was removed")
	}
	wantFile(t, p.TargetPath, "somebody's data")
	if err := os.Remove(p.TargetPath); err != nil {
		t.Fatal(err)
	}

	if err := os.MkdirAll(filepath.Join(p.TargetPath, "data"), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := r.m.Unpublish(t.Context(), "vol", p.TargetPath); err == nil || !strings.Contains(err.Error(), "by hand") {
		t.Fatalf("a directory that is not empty: %v", err)
	}
	if err := os.RemoveAll(p.TargetPath); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc", p.TargetPath); err != nil {
		t.Fatal(err)
	}
	if err := r.m.Unpublish(t.Context(), "vol", p.TargetPath); err == nil {
		t.Fatal("a symlink was removed")
	}
}

// Leftovers of a node that rebooted: no entry, no mount, the target still there.
func TestUnpublishWithoutEntry(t *testing.T) {
	r := newRig(t)
	r.start()
	dir, file := r.path("pods", "dir"), r.path("pods", "file")
	if err := os.MkdirAll(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	writeFile(t, file, "")
	for range 2 {
		for _, path := range []string{dir, file, r.path("pods", "never", "there")} {
			if err := r.m.Unpublish(t.Context(), "unknown", path); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
				t.Fatalf("%s: %v", path, err)
			}
		}
		if err := r.m.Unstage(t.Context(), "unknown", r.path("staging", "x")); err != nil {
			t.Fatal(err)
		}
	}
}

// A symbolic link above the paths, as in /var/lib/kubelet -> /data/kubelet.
func TestLinkedKubeletDirectory(t *testing.T) {
	r := newRig(t)
	r.create("vol", sizes["ext4"], pool.Params{})
	r.start()
	if err := os.Mkdir(r.path("real"), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", r.path("link")); err != nil {
		t.Fatal(err)
	}
	s := StageRequest{VolumeID: "vol", StagingPath: r.path("link", "globalmount") + "/"}
	p := PublishRequest{VolumeID: "vol", StagingPath: r.path("link", "globalmount"), TargetPath: r.path("link", "new", "target")}
	for range 2 {
		r.mustStage(s)
		r.mustPublish(p)
	}
	if n := len(r.mounts()); n != 2 {
		t.Fatalf("%d mounts", n)
	}
	r.mustUnpublish(p)
	r.mustUnstage(s)
	r.nothingLeft()
}

// A bind mount that kubelet made of it, and an open file: never unmounted
// from under their user (I-NODE-7).
func TestUnstageBusy(t *testing.T) {
	r := newRig(t)
	s := r.staged("ext4")
	sub := r.path("subpath")
	if err := errors.Join(os.Mkdir(sub, 0o750), os.Mkdir(filepath.Join(s.StagingPath, "d"), 0o750)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(filepath.Join(s.StagingPath, "d"), sub, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	err := r.m.Unstage(t.Context(), "vol", s.StagingPath)
	wantErr(t, err, ErrBusy)
	if !strings.Contains(err.Error(), sub) {
		t.Fatalf("%v does not name %s", err, sub)
	}
	if err := unix.Unmount(sub, 0); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(s.StagingPath, "open"))
	if err != nil {
		t.Fatal(err)
	}
	wantErr(t, r.m.Unstage(t.Context(), "vol", s.StagingPath), ErrBusy)
	if _, err := f.WriteString("still works"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	r.mustStage(s)
	r.mustUnstage(s)
	r.nothingLeft()
}

// shutDown makes the filesystem stop as an I/O error would.
func (r *rig) shutDown(fsType, path string) {
	r.t.Helper()
	if fsType == "ext4" { // emergency_ro: the mount flag stays rw
		dev := filepath.Base(r.m.volumes["vol"].dev.Path())
		if err := os.WriteFile("/sys/fs/ext4/"+dev+"/trigger_fs_error", []byte("1"), 0); err != nil {
			r.t.Fatal(err)
		}
		return
	}
	r.run("xfs_io", "-x", "-c", "shutdown", path)
}

func TestReadOnlyAfterError(t *testing.T) {
	for _, fsType := range []string{"ext4", "xfs"} {
		t.Run(fsType, func(t *testing.T) {
			r := newRig(t)
			s := r.staged(fsType)
			a, b := r.publishTo("vol", "a"), r.publishTo("vol", "b")
			r.mustPublish(a)
			writeFile(t, filepath.Join(a.TargetPath, "file"), "content")
			syncFile(t, filepath.Join(a.TargetPath, "file"))
			r.shutDown(fsType, s.StagingPath)
			wantErr(t, r.m.Publish(t.Context(), b), ErrReadOnlyRemount)
			r.mustStage(s) // in use: stays as it is
			wantErr(t, r.m.Publish(t.Context(), b), ErrReadOnlyRemount)
			r.mustUnpublish(a)
			r.mustStage(s) // nobody uses it: checked and mounted again
			r.mustPublish(b)
			wantFile(t, filepath.Join(b.TargetPath, "file"), "content")
			writeFile(t, filepath.Join(b.TargetPath, "more"), "")
			r.mustUnpublish(b)
			r.mustUnstage(s)
			r.nothingLeft()
		})
	}
}

// The device's server has ended in this process.
func TestDeadDevice(t *testing.T) {
	r := newRig(t)
	s := r.staged("ext4")
	p := r.publishTo("vol", "a")
	r.mustPublish(p)
	r.die("vol")
	wantErr(t, r.m.Publish(t.Context(), r.publishTo("vol", "b")), ErrDeviceDead)
	wantErr(t, r.m.Stage(t.Context(), s), ErrDeviceDead)
	if _, err := r.m.Expand(t.Context(), "vol", p.TargetPath); !errors.Is(err, ErrDeviceDead) {
		t.Fatal(err)
	}
	r.mustUnpublish(p)
	r.mustStage(s)
	r.mustPublish(p)
	r.mustUnpublish(p)
	r.die("vol")
	r.mustUnstage(s)
	r.nothingLeft()
}

func TestPublishIsUndone(t *testing.T) {
	r := newRig(t)
	r.staged("ext4")
	p := r.publishTo("vol", "a")
	r.m.step = func(s string) {
		if s == "target made" { // the bind will fail
			_ = os.Remove(p.TargetPath)
		}
	}
	if err := r.m.Publish(t.Context(), p); err == nil {
		t.Fatal("published nowhere")
	}
	if n := len(r.m.volumes["vol"].entry.Targets); n != 0 {
		t.Fatalf("%d targets recorded", n)
	}
	r.m.step = func(string) {}
	r.mustPublish(p)
}
