package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// sizes are the smallest round ones that each mkfs takes.
var sizes = map[string]int64{"ext4": 64 * mib, "xfs": 320 * mib, "btrfs": 128 * mib}

// I-NODE-1, I-NODE-4, I-NODE-5, I-NODE-6
func TestLifeOfAVolume(t *testing.T) {
	for _, fsType := range fsTypes {
		t.Run(fsType, func(t *testing.T) {
			r := newRig(t)
			r.create("vol", sizes[fsType], pool.Params{})
			r.start()
			s, p := r.stage("vol", fsType), r.publishTo("vol", "a/mount")
			for range 3 { // idempotent
				r.mustStage(s)
			}
			if u := r.vols.use(t, "vol"); u != pool.UseMounted {
				t.Fatalf("use is %s", u)
			}
			for range 3 {
				r.mustPublish(p)
			}
			writeFile(t, filepath.Join(p.TargetPath, "file"), "content")
			wantErr(t, r.m.Unstage(t.Context(), "vol", s.StagingPath), ErrBusy)
			for range 2 {
				r.mustUnpublish(p)
			}
			for range 2 {
				r.mustUnstage(s)
			}
			r.nothingLeft()

			r.steps = nil
			r.mustStage(s)
			if r.formatted() {
				t.Fatal("a used volume was formatted")
			}
			wantFile(t, filepath.Join(s.StagingPath, "file"), "content")
			r.mustUnstage(s)
			r.nothingLeft()
		})
	}
}

func TestBlock(t *testing.T) {
	r := newRig(t)
	r.create("vol", 16*mib, pool.Params{})
	r.start()
	s, p := r.stage("vol", ""), r.publishTo("vol", "a/dev")
	s.Block, p.Block = true, true
	r.mustStage(s)
	r.mustStage(s)
	if u := r.vols.use(t, "vol"); u != pool.UseMounted {
		t.Fatalf("use is %s: the device may be written to", u)
	}
	r.mustPublish(p)
	r.mustPublish(p)
	// A container runtime makes a node of its own.
	f, err := os.OpenFile(r.m.volumes["vol"].dev.Path(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("raw data"), 4096); err != nil {
		t.Fatal(err)
	}
	wantErr(t, r.m.Unstage(t.Context(), "vol", s.StagingPath), ErrBusy)
	r.mustUnpublish(p)
	// The pod still has the device open.
	err = r.m.Unstage(t.Context(), "vol", s.StagingPath)
	wantErr(t, err, ErrBusy)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	r.mustUnstage(s)
	r.nothingLeft()
	b, err := os.ReadFile(r.vols.file("vol"))
	if err != nil || string(b[4096:4104]) != "raw data" {
		t.Fatalf("data of the device did not reach the image: %v", err)
	}
	// Raw data is no filesystem, and not blank (I-NODE-4).
	wantErr(t, r.m.Stage(t.Context(), r.stage("vol", "ext4")), ErrNoFilesystem)
	r.nothingLeft()
}

func TestRestageWithOtherArguments(t *testing.T) {
	r := newRig(t)
	r.create("vol", sizes["ext4"], pool.Params{FSType: "ext4"})
	r.start()
	s := r.stage("vol", "")
	s.MountFlags = []string{"noatime"}
	r.mustStage(s)
	for name, change := range map[string]func(*StageRequest){
		"block":     func(q *StageRequest) { q.Block = true },
		"read-only": func(q *StageRequest) { q.ReadOnly = true },
		"type":      func(q *StageRequest) { q.FSType = "xfs" },
		"flags":     func(q *StageRequest) { q.MountFlags = nil },
	} {
		q := s
		change(&q)
		if err := r.m.Stage(t.Context(), q); !errors.Is(err, ErrIncompatible) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	r.vols.failing("Volume", errors.New("the share is away")) // it is not asked
	r.mustStage(s)
	r.mustPublish(r.publishTo("vol", "a"))
	r.mustUnpublish(r.publishTo("vol", "a"))
	r.mustUnstage(s)
	r.nothingLeft()
}

func TestBadRequests(t *testing.T) {
	r := newRig(t)
	r.create("vol", sizes["ext4"], pool.Params{})
	r.start()
	for name, change := range map[string]func(*StageRequest){
		"no id":         func(q *StageRequest) { q.VolumeID = "" },
		"long id":       func(q *StageRequest) { q.VolumeID = strings.Repeat("x", 300) },
		"id not UTF-8":  func(q *StageRequest) { q.VolumeID = "a\xff" },
		"no path":       func(q *StageRequest) { q.StagingPath = "" },
		"relative path": func(q *StageRequest) { q.StagingPath = "some/path" },
		"root":          func(q *StageRequest) { q.StagingPath = "/" },
		"type":          func(q *StageRequest) { q.FSType = "ntfs" },
		"bind":          func(q *StageRequest) { q.MountFlags = []string{"noatime,bind"} },
		"loop":          func(q *StageRequest) { q.MountFlags = []string{"loop=/dev/sda"} },
		"quote":         func(q *StageRequest) { q.MountFlags = []string{`context="a`} },
	} {
		q := r.stage("vol", "ext4")
		change(&q)
		if err := r.m.Stage(t.Context(), q); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	wantErr(t, r.m.Stage(t.Context(), r.stage("unknown", "")), pool.ErrNotFound)
	r.nothingLeft()
}

// I-NODE-8, kubernetes #121937: a leftover of another device is no staged volume.
func TestForeignMountAtStagingPath(t *testing.T) {
	r := newRig(t)
	r.create("vol", sizes["ext4"], pool.Params{})
	r.create("other", sizes["ext4"], pool.Params{})
	r.start()
	other := r.stage("other", "ext4")
	r.mustStage(other)
	q := r.stage("vol", "ext4")
	q.StagingPath = other.StagingPath
	wantErr(t, r.m.Stage(t.Context(), q), ErrForeignMount)
	// On top of a staged one too.
	mine := r.stage("vol", "ext4")
	r.mustStage(mine)
	if err := unix.Mount("none", mine.StagingPath, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	wantErr(t, r.m.Stage(t.Context(), mine), ErrForeignMount)
	wantErr(t, r.m.Unstage(t.Context(), "unknown", mine.StagingPath), ErrForeignMount)
	if err := unix.Unmount(mine.StagingPath, 0); err != nil {
		t.Fatal(err)
	}
	// Somebody has unmounted ours as well: it comes back.
	if err := unix.Unmount(mine.StagingPath, 0); err != nil {
		t.Fatal(err)
	}
	wantErr(t, r.m.Publish(t.Context(), r.publishTo("vol", "a")), ErrNotStaged)
	r.mustStage(mine)
	r.mustPublish(r.publishTo("vol", "a"))
}

// Two PersistentVolumes with one handle.
func TestTwoStagingPaths(t *testing.T) {
	for _, block := range []bool{false, true} {
		r := newRig(t)
		r.create("vol", sizes["ext4"], pool.Params{})
		r.start()
		one, two := r.stage("vol", ""), r.stage("vol", "")
		two.StagingPath = r.path("staging", "two")
		one.Block, two.Block = block, block
		p := r.publishTo("vol", "a")
		p.StagingPath, p.Block = two.StagingPath, block
		r.mustStage(one)
		wantErr(t, r.m.Publish(t.Context(), p), ErrNotStaged)
		r.mustStage(two)
		r.mustStage(two)
		r.mustPublish(p)
		wantErr(t, r.m.Unstage(t.Context(), "vol", two.StagingPath), ErrBusy)
		r.mustUnstage(one)
		if r.loops() != 1 {
			t.Fatal("the device went with the first staging path")
		}
		r.mustUnpublish(p)
		r.mustUnstage(two)
		r.nothingLeft()
	}
}

// A final error leaves nothing (I-NODE-6).
func TestFailedStageIsUndone(t *testing.T) {
	cause := errors.New("made by the test")
	for _, method := range []string{"Volume", "open", "read", "Attach", "BeginFormat", "SetUse"} {
		t.Run(method, func(t *testing.T) {
			r := newRig(t)
			r.create("vol", sizes["ext4"], pool.Params{})
			r.start()
			r.vols.failing(method, cause)
			wantErr(t, r.m.Stage(t.Context(), r.stage("vol", "ext4")), cause)
			r.vols.failing(method, nil)
			r.nothingLeft()
			r.mustStage(r.stage("vol", "ext4"))
			r.mustUnstage(r.stage("vol", "ext4"))
			r.nothingLeft()
		})
	}
	t.Run("mount", func(t *testing.T) {
		r := newRig(t)
		r.create("vol", sizes["ext4"], pool.Params{})
		r.start()
		q := r.stage("vol", "ext4")
		q.MountFlags = []string{"no_such_option"}
		wantErr(t, r.m.Stage(t.Context(), q), ErrNoFilesystem)
		r.nothingLeft()
		r.mustStage(r.stage("vol", "ext4"))
	})
	t.Run("mkfs", func(t *testing.T) {
		r := newRig(t)
		r.create("vol", sizes["ext4"], pool.Params{MkfsOptions: "-O no_such_feature"})
		r.start()
		wantErr(t, r.m.Stage(t.Context(), r.stage("vol", "ext4")), ErrFormat)
		r.nothingLeft()
	})
}

// What cannot be undone stays in the journal, and the next call goes on (I-NODE-6).
func TestFailedTeardown(t *testing.T) {
	r := newRig(t)
	r.create("vol", sizes["ext4"], pool.Params{})
	r.start()
	cause := errors.New("made by the test")
	r.vols.failing("SetUse", cause)
	r.att.busy = true
	err := r.m.Stage(t.Context(), r.stage("vol", "ext4"))
	wantErr(t, err, ErrUnfinished)
	if errors.Is(err, cause) || !strings.Contains(err.Error(), cause.Error()) {
		t.Fatalf("the cause belongs into the text only: %v", err)
	}
	if r.loops() != 1 || !r.m.Held("vol") {
		t.Fatal("a busy device is gone")
	}
	wantErr(t, r.m.Stage(t.Context(), r.stage("vol", "ext4")), ErrUnfinished)
	wantErr(t, r.m.Unstage(t.Context(), "vol", r.stage("vol", "").StagingPath), ErrBusy)
	r.vols.failing("SetUse", nil)
	r.att.busy = false
	r.mustStage(r.stage("vol", "ext4"))
	r.mustUnstage(r.stage("vol", "ext4"))
	r.nothingLeft()
}

// I-NODE-10
func TestOneCallAtATime(t *testing.T) {
	r := newRig(t)
	r.create("vol", sizes["ext4"], pool.Params{})
	r.start()
	inside, goOn := make(chan struct{}), make(chan struct{})
	r.m.step = func(s string) {
		if s == "attached" {
			close(inside)
			<-goOn
		}
	}
	done := make(chan error, 1)
	go func() { done <- r.m.Stage(context.Background(), r.stage("vol", "ext4")) }()
	<-inside
	wantErr(t, r.m.Stage(t.Context(), r.stage("vol", "ext4")), ErrPending)
	wantErr(t, r.m.Unstage(t.Context(), "vol", r.stage("vol", "").StagingPath), ErrPending)
	wantErr(t, r.m.Publish(t.Context(), r.publishTo("vol", "a")), ErrPending)
	if _, err := r.m.Stats(t.Context(), "vol", r.stage("vol", "").StagingPath); err == nil {
		t.Fatal("stats of what is not mounted yet")
	}
	close(goOn)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestReadOnlyStage(t *testing.T) {
	for _, fsType := range fsTypes {
		t.Run(fsType, func(t *testing.T) {
			r := newRig(t)
			r.create("vol", sizes[fsType], pool.Params{})
			r.start()
			ro := r.stage("vol", fsType)
			ro.ReadOnly = true
			wantErr(t, r.m.Stage(t.Context(), ro), ErrNoFilesystem)
			r.mustStage(r.stage("vol", fsType))
			writeFile(t, filepath.Join(ro.StagingPath, "file"), "content")
			syncFile(t, filepath.Join(ro.StagingPath, "file"))
			// As after a power cut: the filesystem's log wants to be replayed.
			cut := r.cut("vol")
			r.mustUnstage(r.stage("vol", fsType))
			r.restore("vol", cut)
			r.mustStage(ro)
			p := r.publishTo("vol", "a")
			wantErr(t, r.m.Publish(t.Context(), p), ErrIncompatible)
			p.ReadOnly = true
			r.mustPublish(p)
			if err := os.WriteFile(filepath.Join(p.TargetPath, "x"), nil, 0o600); !errors.Is(err, unix.EROFS) {
				t.Fatalf("write to a read-only volume: %v", err)
			}
			r.mustUnpublish(p)
			r.mustUnstage(ro)
			r.wantUnchanged("vol", cut)
		})
	}
}

func syncFile(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// cut is a copy of the medium as a power cut would leave it.
func (r *rig) cut(id string) string {
	r.t.Helper()
	file := r.path("cut-" + filepath.Base(r.vols.file(id)))
	r.run("cp", "--sparse=always", r.vols.file(id), file)
	return file
}

// restore puts a cut back.
func (r *rig) restore(id, cut string) {
	r.t.Helper()
	r.run("cp", "--sparse=always", cut, r.vols.file(id))
}

// wantUnchanged fails if the medium is not what it was at the cut.
func (r *rig) wantUnchanged(id, cut string) {
	r.t.Helper()
	r.run("cmp", cut, r.vols.file(id))
}
