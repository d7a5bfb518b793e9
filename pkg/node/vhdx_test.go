package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev/fuseloop"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/keeper"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// realParts are the pool, the images and the server of the product.
type realParts struct {
	set *pool.Set
	att *fuseloop.Attacher
}

func newRealParts(dir string) (*realParts, error) {
	path := filepath.Join(dir, "real-pool")
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	p, err := pool.Open(pool.Options{Name: "default", Dir: path, Overcommit: 10, Holder: "node-1"})
	if err != nil {
		return nil, err
	}
	set, err := pool.NewSet(p)
	if err != nil {
		return nil, err
	}
	return &realParts{set: set, att: fuseloop.New(fuseloop.Options{})}, nil
}

func (p *realParts) open(r *rig) (*Manager, error) {
	c := Config{NodeID: "node-1", StateDir: filepath.Join(r.dir, "state"), Volumes: p.set, Attacher: p.att, Guard: r.guard}
	if _, err := os.Stat(r.path("keeper.sock")); err == nil {
		// The keeper that this process asked before is fenced off by the next.
		k, err := keeper.Dialer{Socket: r.path("keeper.sock"), Owner: "node-1"}.Dial(context.Background())
		if err != nil {
			return nil, err
		}
		c.Keeper, r.kept = k, k
	}
	m, err := New(c)
	if err != nil {
		return nil, err
	}
	m.step = func(s string) { r.steps = append(r.steps, s) }
	return m, nil
}

// newRealRig is a rig with a volume whose parts are all real.
func newRealRig(t *testing.T, spec pool.Spec) *rig {
	t.Helper()
	return newRealRigOn(t, spec, func(string) {})
}

// newRealRigOn is newRealRig on a pool's directory that is prepared first.
func newRealRigOn(t *testing.T, spec pool.Spec, prepare func(dir string)) *rig {
	t.Helper()
	r := newRig(t)
	prepare(r.path("real-pool"))
	var err error
	if r.real, err = newRealParts(r.dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.cleanReal)
	v, err := r.real.set.CreateVolume(t.Context(), spec)
	if err == nil {
		err = r.real.set.RegisterNode(t.Context(), pool.Node{ID: "node-1"})
	}
	if err == nil {
		err = r.real.set.Attach(t.Context(), v.ID, "node-1", false)
	}
	if err != nil {
		t.Fatal(err)
	}
	r.id = v.ID
	return r
}

// cleanReal ends what this process serves, and what a victim has left.
func (r *rig) cleanReal() {
	ctx := context.Background()
	t, err := readMounts()
	if err != nil {
		r.t.Error(err)
	}
	for _, mi := range slices.Backward(t) {
		if strings.HasPrefix(mi.Mountpoint, r.dir+"/") {
			_ = unix.Unmount(mi.Mountpoint, unix.MNT_DETACH)
		}
	}
	if r.m != nil {
		for _, v := range r.m.volumes {
			if v.dev != nil {
				err = errors.Join(err, v.dev.Detach(ctx))
			}
			if v.image != nil {
				err = errors.Join(err, v.image.Close())
			}
			v.image = nil
		}
	}
	if err := errors.Join(err, r.real.att.Teardown(ctx, r.id), r.real.set.Close()); err != nil {
		r.t.Error(err)
	}
}

// wantClean fails if anything of the volume is left, or its image is not clean.
func (r *rig) wantClean() {
	r.t.Helper()
	r.wantTornDown()
	if r.m != nil && r.m.Held(r.id) {
		r.t.Fatal("image still open")
	}
	r.qemuCheck()
}

// qemuCheck lets another implementation judge the closed image.
func (r *rig) qemuCheck() {
	r.t.Helper()
	v, err := r.real.set.Volume(r.t.Context(), r.id)
	if err != nil {
		r.t.Fatal(err)
	}
	if v.Layers > 0 { // which qemu-img does not open
		r.selfCheck(v.Image)
		return
	}
	if _, err := exec.LookPath("qemu-img"); err != nil || v.Params.LogicalSectorSize == 4096 {
		r.t.Log("not checked by qemu-img: it is not installed, or refuses 4096-byte sectors")
		return
	}
	if out, err := exec.Command("qemu-img", "check", "-f", "vhdx", v.Image).CombinedOutput(); err != nil {
		r.t.Fatalf("qemu-img check %s: %v: %s", v.Image, err, out)
	}
}

func (r *rig) selfCheck(file string) {
	r.t.Helper()
	f, err := os.Open(file)
	if err != nil {
		r.t.Fatal(err)
	}
	of, err := vhdx.NewOSFile(f, vhdx.FileOptions{ReadOnly: true})
	if err != nil {
		r.t.Fatal(err)
	}
	rep, err := vhdx.Check(r.t.Context(), of, vhdx.CheckOptions{Parents: vhdx.ParentsIn(filepath.Dir(filepath.Dir(file)))})
	if worst, found := rep.Worst(); err != nil || found {
		r.t.Fatalf("check %s: %v, %v", file, worst, err)
	}
}

func realSize(fsType string) int64 {
	if fsType == "block" {
		return 64 * mib
	}
	return sizes[fsType]
}

func (r *rig) mustCall(fsType string, calls ...string) {
	r.t.Helper()
	for _, c := range calls {
		if err := r.call(r.m, c, fsType); err != nil {
			r.t.Fatalf("%s: %v", c, err)
		}
	}
}

func TestRealLife(t *testing.T) {
	for _, fsType := range []string{"ext4", "xfs", "btrfs", "block"} {
		for _, spec := range []pool.Spec{{}, {Params: pool.Params{Fixed: true, LogicalSectorSize: 4096}}} {
			t.Run(fmt.Sprint(fsType, " fixed=", spec.Params.Fixed), func(t *testing.T) {
				spec.Name, spec.Size = "pvc-1", realSize(fsType)
				r := newRealRig(t, spec)
				r.start()
				r.mustCall(fsType, "stage", "stage", "publish", "publish", "write")
				if err := r.call(r.m, "unstage", fsType); !errors.Is(err, ErrBusy) {
					t.Fatal(err)
				}
				if _, err := r.m.Stats(t.Context(), r.id, r.publishTo(r.id, "a").TargetPath); err != nil {
					t.Fatal(err)
				}
				r.mustCall(fsType, "unpublish", "unpublish", "unstage", "unstage")
				r.wantClean()
				r.steps = nil
				r.mustCall(fsType, "stage", "publish")
				if r.formatted() {
					t.Fatal("formatted twice")
				}
				r.wantContent(fsType)
				r.mustCall(fsType, "unpublish", "unstage")
				r.wantClean()
			})
		}
	}
}

func (r *rig) wantContent(fsType string) {
	r.t.Helper()
	path := r.publishTo(r.id, "a").TargetPath
	if fsType != "block" {
		path = filepath.Join(path, "file")
	}
	f, err := os.Open(path)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, len("content"))
	if _, err := f.Read(b); err != nil || string(b) != "content" {
		r.t.Fatalf("%q, %v", b, err)
	}
}

// The plugin dies with everything mounted: its devices answer EIO. The next
// one tears down, and synced data is there again.
func TestRealKillAndRecover(t *testing.T) {
	for _, fsType := range []string{"ext4", "xfs", "btrfs", "block"} {
		t.Run(fsType, func(t *testing.T) {
			r := newRealRig(t, pool.Spec{Name: "pvc-1", Size: realSize(fsType)})
			r.kill(victim{FS: fsType, Calls: []string{"stage", "publish", "write"}})
			if len(r.mounts()) == 0 {
				t.Fatal("nothing was left")
			}
			got := r.start()
			if len(got) != 1 || got[0].Outcome != OutcomeTornDown {
				t.Fatalf("recovered %+v", got)
			}
			r.wantTornDown()
			r.mustCall(fsType, "stage", "publish")
			if r.formatted() {
				t.Fatal("formatted again")
			}
			r.wantContent(fsType)
			r.mustCall(fsType, "unpublish", "unstage")
			r.wantClean()
		})
	}
}

// wantTornDown is wantClean for an image whose log may still be dirty.
func (r *rig) wantTornDown() {
	r.t.Helper()
	if at := r.mounts(); len(at) > 0 {
		r.t.Fatalf("still mounted: %q", at)
	}
	if files, err := os.ReadDir(r.path("state", entriesDir)); err != nil || len(files) > 0 {
		r.t.Fatalf("journal entries left: %v, %v", files, err)
	}
}

// A pod's process still has the dead filesystem open: its mounts are detached,
// for it can write nothing any more (I-NODE-7); the device goes when it ends.
func TestRealKillWithBusyMount(t *testing.T) {
	for _, fsType := range fsTypes {
		t.Run(fsType, func(t *testing.T) {
			r := newRealRig(t, pool.Spec{Name: "pvc-1", Size: realSize(fsType)})
			r.kill(victim{FS: fsType, Calls: []string{"stage", "publish", "write"}})
			target := r.publishTo(r.id, "a").TargetPath
			f, err := os.Open(target) // in the cache, so it opens
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			got := r.start()
			if len(got) != 1 || got[0].Outcome != OutcomeKept {
				t.Fatalf("recovered %+v", got)
			}
			wantErr(t, got[0].Err, ErrBusy)
			if at := r.mounts(); len(at) > 0 {
				t.Fatalf("kubelet cannot clean up: %q", at)
			}
			wantErr(t, r.call(r.m, "stage", fsType), ErrUnfinished)
			r.mustCall(fsType, "unpublish")
			wantErr(t, r.call(r.m, "unstage", fsType), ErrBusy)
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			r.mustCall(fsType, "unstage", "stage", "publish")
			r.wantContent(fsType)
			r.mustCall(fsType, "unpublish", "unstage")
			r.wantClean()
		})
	}
}

func TestRealKilledAtEveryStep(t *testing.T) {
	calls := []string{"stage", "publish", "write", "unpublish", "unstage"}
	types := []string{"ext4", "block", "xfs", "btrfs"}
	if testing.Short() {
		types = types[:1]
	}
	for _, fsType := range types {
		probe := newRealRig(t, pool.Spec{Name: "pvc-1", Size: realSize(fsType)})
		for _, step := range probe.stepsOf(fsType, calls) {
			t.Run(fsType+"/"+step, func(t *testing.T) {
				r := newRealRig(t, pool.Spec{Name: "pvc-1", Size: realSize(fsType)})
				r.kill(victim{Step: step, FS: fsType, Calls: calls})
				v, err := r.real.set.Volume(t.Context(), r.id)
				if err != nil {
					t.Fatal(err)
				}
				for _, got := range r.start() {
					if got.Err != nil {
						t.Fatalf("recover: %+v", got)
					}
				}
				r.wantTornDown()
				r.mustCall(fsType, "unpublish", "unstage", "stage", "publish")
				if v.Use == pool.UseMounted && r.formatted() {
					t.Fatal("a used volume was formatted")
				}
				r.mustCall(fsType, "write", "unpublish", "unstage")
				r.wantClean()
			})
		}
	}
}

func TestRealExpand(t *testing.T) {
	for _, fsType := range []string{"ext4", "xfs", "btrfs", "block"} {
		t.Run(fsType, func(t *testing.T) {
			r := newRealRig(t, pool.Spec{Name: "pvc-1", Size: realSize(fsType)})
			r.start()
			r.mustCall(fsType, "stage", "publish", "write")
			want := gib + 4096
			if _, err := r.real.set.Resize(t.Context(), r.id, want); err != nil {
				t.Fatal(err)
			}
			path := r.publishTo(r.id, "a").TargetPath
			got, err := r.m.Expand(t.Context(), r.id, path)
			if got != want || err != nil && !errors.Is(err, ErrOfflineOnly) {
				t.Fatal(got, err)
			}
			if err != nil {
				r.mustCall(fsType, "unpublish", "unstage", "stage", "publish")
			}
			st, err := r.m.Stats(t.Context(), r.id, path)
			if err != nil || st.Bytes.Total < want*8/10 {
				t.Fatalf("%+v, %v", st, err)
			}
			r.wantContent(fsType)
			r.mustCall(fsType, "unpublish", "unstage")
			r.wantClean()
		})
	}
}

// A graceful stop with a volume in use: what was written and never synced is
// on the medium.
func TestRealShutdown(t *testing.T) {
	r := newRealRig(t, pool.Spec{Name: "pvc-1", Size: realSize("ext4")})
	r.start()
	r.mustCall("ext4", "stage", "publish")
	if err := os.WriteFile(filepath.Join(r.publishTo(r.id, "a").TargetPath, "file"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := r.m
	if err := m.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	v, err := r.real.set.Volume(t.Context(), r.id)
	if err != nil {
		t.Fatal(err)
	}
	cut, err := os.ReadFile(v.Image)
	if err != nil {
		t.Fatal(err)
	}
	r.cleanMounts()
	for _, x := range m.volumes {
		if err := errors.Join(x.dev.Detach(t.Context()), x.image.Close()); err != nil {
			t.Fatal(err)
		}
	}
	r.m = nil
	if err := os.WriteFile(v.Image, cut, 0o600); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.mustCall("ext4", "stage", "publish")
	r.wantContent("ext4")
	r.mustCall("ext4", "unpublish", "unstage")
	r.wantClean()
}

func (r *rig) cleanMounts() {
	r.t.Helper()
	t, err := readMounts()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, mi := range slices.Backward(t) {
		if strings.HasPrefix(mi.Mountpoint, r.dir+"/") {
			if err := unix.Unmount(mi.Mountpoint, 0); err != nil {
				r.t.Fatal(err)
			}
		}
	}
}
