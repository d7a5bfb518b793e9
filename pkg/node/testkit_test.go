package node

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/helper"
	"github.com/csi-vhdx/csi-driver-vhdx/internal/loopdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev/fuseloop"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/keeper"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

func TestMain(m *testing.M) {
	helper.RunIfHelper(slices.Concat(Commands(), fuseloop.Commands())...)
	if plan := os.Getenv(killEnv); plan != "" {
		runVictim(plan)
		return
	}
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	os.Exit(m.Run())
}

const (
	mib = int64(1 << 20)
	gib = int64(1 << 30)
)

// rig is one node with volumes that are plain files behind loop devices: the
// kernel, the mounts and the filesystems are real, the image format and the
// server are not. vhdx_test.go has all parts real.
type rig struct {
	t     *testing.T
	dir   string
	id    string // of the volume that call works on
	ro    bool   // call works on it read-only
	real  *realParts
	vols  *rawVolumes
	att   *loopAttacher
	m     *Manager
	guard Guard
	kept  *keeper.Client // of the last manager; nil: there is no keeper
	steps []string
}

func newRig(t *testing.T) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts and loop devices")
	}
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r := rigAt(dir)
	r.t = t
	t.Cleanup(r.clean)
	return r
}

func rigAt(dir string) *rig {
	v := &rawVolumes{dir: filepath.Join(dir, "pool")}
	return &rig{dir: dir, id: "vol", vols: v, att: &loopAttacher{vols: v}}
}

// start is the start of a plugin process.
func (r *rig) start() []Recovered {
	r.t.Helper()
	m, err := r.open()
	if err != nil {
		r.t.Fatal(err)
	}
	r.m = m
	r.t.Cleanup(func() { r.stop() })
	got, err := m.Recover(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	return got
}

func (r *rig) open() (*Manager, error) {
	if r.real != nil {
		return r.real.open(r)
	}
	m, err := New(Config{NodeID: "node-1", StateDir: filepath.Join(r.dir, "state"), Volumes: r.vols, Attacher: r.att})
	if err != nil {
		return nil, err
	}
	m.open = func(_ context.Context, id string, readOnly bool, _ vhdx.Journal) (image, error) {
		return r.vols.open(id, readOnly)
	}
	m.step = func(s string) { r.steps = append(r.steps, s) }
	return m, nil
}

// stop lets go of the state directory as the end of the process would. Images
// lose their locks; the kernel's loop devices go on.
func (r *rig) stop() {
	if r.m == nil {
		return
	}
	for _, v := range r.m.volumes {
		if v.image != nil {
			_ = v.image.Close()
		}
	}
	_ = r.m.journal.close()
	r.m = nil
}

func (r *rig) path(elem ...string) string { return filepath.Join(append([]string{r.dir}, elem...)...) }

// clean removes every mount and loop device below the rig's directory.
func (r *rig) clean() {
	t, err := readMounts()
	if err != nil {
		r.t.Error(err)
	}
	for _, mi := range slices.Backward(t) {
		if strings.HasPrefix(mi.Mountpoint, r.dir+"/") {
			_ = unix.Unmount(mi.Mountpoint, unix.MNT_DETACH)
		}
	}
	devs, err := loopdev.List()
	if err != nil {
		r.t.Error(err)
	}
	for _, d := range devs {
		if r.vols.has(d.Tag) {
			if _, err := loopdev.Detach(d.Number, d.Tag); err != nil {
				r.t.Errorf("detach %s: %v", loopdev.Path(d.Number), err)
			}
		}
	}
}

// loops is how many loop devices the rig's volumes have.
func (r *rig) loops() int {
	r.t.Helper()
	n := 0
	devs, err := loopdev.List()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, d := range devs {
		if r.vols.has(d.Tag) {
			n++
		}
	}
	return n
}

// mounts is what is mounted below the rig's directory.
func (r *rig) mounts() []string {
	r.t.Helper()
	t, err := readMounts()
	if err != nil {
		r.t.Fatal(err)
	}
	var at []string
	for _, mi := range t {
		if strings.HasPrefix(mi.Mountpoint, r.dir+"/") {
			at = append(at, strings.TrimPrefix(mi.Mountpoint, r.dir+"/"))
		}
	}
	return at
}

// nothingLeft fails if anything of any volume is still there.
func (r *rig) nothingLeft() {
	r.t.Helper()
	if at := r.mounts(); len(at) > 0 {
		r.t.Fatalf("still mounted: %q", at)
	}
	if n := r.loops(); n > 0 {
		r.t.Fatalf("%d loop devices left", n)
	}
	files, err := os.ReadDir(r.path("state", entriesDir))
	if err != nil {
		r.t.Fatal(err)
	}
	if len(files) > 0 {
		r.t.Fatalf("journal entries left: %v", files)
	}
	for id := range r.vols.records() {
		if r.m != nil && r.m.Held(id) {
			r.t.Fatalf("image of %s still open", id)
		}
	}
}

func (r *rig) formatted() bool { return slices.Contains(r.steps, "mkfs") }

func (r *rig) stage(id, fsType string) StageRequest {
	return StageRequest{VolumeID: id, StagingPath: r.path("staging", entryName(id)[:8]), FSType: fsType}
}

func (r *rig) publishTo(id, target string) PublishRequest {
	return PublishRequest{VolumeID: id, StagingPath: r.stage(id, "").StagingPath, TargetPath: r.path("pods", target)}
}

func (r *rig) mustStage(q StageRequest) {
	r.t.Helper()
	if err := r.m.Stage(context.Background(), q); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) mustPublish(q PublishRequest) {
	r.t.Helper()
	if err := r.m.Publish(context.Background(), q); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) mustUnpublish(q PublishRequest) {
	r.t.Helper()
	if err := r.m.Unpublish(context.Background(), q.VolumeID, q.TargetPath); err != nil {
		r.t.Fatal(err)
	}
	if _, err := os.Lstat(q.TargetPath); !errors.Is(err, os.ErrNotExist) {
		r.t.Fatalf("target is still there: %v", err)
	}
}

func (r *rig) mustUnstage(q StageRequest) {
	r.t.Helper()
	if err := r.m.Unstage(context.Background(), q.VolumeID, q.StagingPath); err != nil {
		r.t.Fatal(err)
	}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func wantFile(t *testing.T, path, content string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil || string(b) != content {
		t.Fatalf("%s: got %q, %v, want %q", path, b, err, content)
	}
}
