package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func mustLook(t *testing.T, s *Set, id string) Look {
	t.Helper()
	l, err := s.Look(t.Context(), id)
	if err != nil || l.Volume.ID != id {
		t.Fatalf("look at %s: %+v, %v", id, l, err)
	}
	return l
}

// What is missing or damaged in the pool shows, and nothing is opened for it.
func TestLook(t *testing.T) {
	s, p := newSet(t)
	v, err := s.CreateVolume(t.Context(), Spec{Name: "a", Size: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if l := mustLook(t, s, v.ID); l.Err != nil {
		t.Fatal(l.Err)
	}
	if d := cmp.Diff(v, mustLook(t, s, v.ID).Volume); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	if err := os.Truncate(v.Image, 4096); err != nil {
		t.Fatal(err)
	}
	if l := mustLook(t, s, v.ID); !errors.Is(l.Err, ErrDamaged) || !errors.Is(l.Err, io.ErrUnexpectedEOF) {
		t.Errorf("image cut short: %v", l.Err)
	}
	if err := os.Remove(v.Image); err != nil {
		t.Fatal(err)
	}
	if l := mustLook(t, s, v.ID); !errors.Is(l.Err, ErrDamaged) || !errors.Is(l.Err, fs.ErrNotExist) {
		t.Errorf("image missing: %v", l.Err)
	}
	all, next, err := s.LookAll(t.Context(), "", 0)
	if err != nil || next != "" || len(all) != 1 || !errors.Is(all[0].Err, fs.ErrNotExist) {
		t.Errorf("%+v, %q, %v", all, next, err)
	}
	if err := os.WriteFile(filepath.Join(p.tree.Name(), p.recordPath(hashOf("a"))), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l := mustLook(t, s, v.ID); !errors.Is(l.Err, ErrDamaged) || errors.Is(l.Err, fs.ErrNotExist) {
		t.Errorf("record damaged: %v", l.Err)
	}
	for _, id := range []string{"fake-vol-id", volumeID{pool: "p", hash: hashOf("b")}.String(), volumeID{pool: "q", hash: hashOf("a")}.String()} {
		if l, err := s.Look(t.Context(), id); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %+v, %v", id, l, err)
		}
	}
}

// A frozen image below a volume, or below the one that it was cloned from, is as
// good as its own.
func TestLookBelow(t *testing.T) {
	s, p := newSet(t)
	v, err := s.CreateVolume(t.Context(), Spec{Name: "a", Size: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	snap, err := s.ReserveSnapshot(t.Context(), SnapshotSpec{Name: "s", Volume: v.ID})
	if err == nil {
		_, err = s.Cut(t.Context(), snap.ID, Live{})
	}
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.CreateVolume(t.Context(), Spec{Name: "c", Size: 64 << 20, Source: Source{Snapshot: snap.ID}})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{v.ID, c.ID} {
		if l := mustLook(t, s, id); l.Err != nil {
			t.Fatal(l.Err)
		}
	}
	if err := os.Remove(filepath.Join(p.tree.Name(), imagePath(mustRecord(t, p, "a").Layers[0].Image))); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{v.ID, c.ID} {
		if l := mustLook(t, s, id); !errors.Is(l.Err, fs.ErrNotExist) {
			t.Errorf("%s: %v", id, l.Err)
		}
	}
}

func mustRecord(t *testing.T, p *Pool, name string) *record {
	t.Helper()
	r, err := p.readRecord(hashOf(name))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A list goes on after any volume of it.
func TestLookAllAfter(t *testing.T) {
	s, ids := twoPools(t, 30)
	for i, id := range ids {
		token, err := s.After(id)
		if err != nil {
			t.Fatal(err)
		}
		all, _, err := s.LookAll(t.Context(), token, 3)
		if err != nil || len(all) != min(3, len(ids)-i-1) {
			t.Fatalf("after %s: %+v, %v", id, all, err)
		}
		for j, l := range all {
			if l.Volume.ID != ids[i+1+j] {
				t.Fatalf("after %s comes %s", id, l.Volume.ID)
			}
		}
	}
	if _, err := s.After("fake"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if _, _, err := s.LookAll(t.Context(), "invalid-token", 1); !errors.Is(err, ErrBadToken) {
		t.Error(err)
	}
}

func TestTrouble(t *testing.T) {
	at := time.Unix(1, 0)
	for _, tt := range []struct {
		f    Figures
		want Trouble
	}{
		{Figures{}, NoTrouble},
		{Figures{Err: errors.New("made")}, TroubleAway},
		{Figures{Err: errors.New("made"), At: at, Total: 100}, TroubleAway},
		{Figures{At: at, Total: 1000, Free: 101}, NoTrouble},
		{Figures{At: at, Total: 1000, Free: 99}, TroubleNear},
		{Figures{At: at, Total: 1000, Free: 19}, TroubleFull},
		{Figures{At: at, Total: 1000, Free: 281, Reserve: 200}, NoTrouble},
		{Figures{At: at, Total: 1000, Free: 279, Reserve: 200}, TroubleNear},
		{Figures{At: at, Total: 1000, Free: 200, Reserve: 200}, TroubleFull},
		{Figures{At: at, Total: 1000, Free: 900, Reserve: 2000}, TroubleFull},
		{Figures{At: at}, TroubleFull},
	} {
		if got, why := tt.f.Trouble(); got != tt.want || (why == nil) != (got == NoTrouble) {
			t.Errorf("%+v: %q, %v; want %q", tt.f, got, why, tt.want)
		}
	}
}

// watched waits until the pool is in a trouble, or well.
func watched(t *testing.T, w *Watch, want Trouble) {
	t.Helper()
	for t.Context().Err() == nil {
		f := w.Figures()[0]
		if got, _ := f.Trouble(); got == want && (f.Err != nil || !f.At.IsZero()) {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("never %q", want)
}

// A real filesystem runs full and gets room again.
func TestTroubleOfARealFilesystem(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	s, _ := openSet(t, dir, func(o *Options) { o.Reserve = 8 << 20 })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w := s.Watch(ctx, WatchOptions{Every: time.Millisecond})
	watched(t, w, NoTrouble)
	file := filepath.Join(dir, "big")
	for _, step := range []struct {
		mib  int
		want Trouble
	}{{52, TroubleNear}, {58, TroubleFull}, {0, NoTrouble}} {
		if err := os.WriteFile(file, make([]byte, step.mib<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		watched(t, w, step.want)
	}
}

// The storage under the share fails: the kernel answers EIO from then on.
func TestTroubleOfAFailedFilesystem(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	disk, dir := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %q: %v: %s", name, args, err, out)
		}
	}
	if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 512<<20)); err != nil {
		t.Fatal(err)
	}
	run("mkfs.xfs", "-q", disk)
	run("mount", "-o", "loop", disk, dir)
	t.Cleanup(func() { run("umount", "-l", dir) })
	s, _ := openSet(t, dir)
	v, err := s.CreateVolume(t.Context(), Spec{Name: "a", Size: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w := s.Watch(ctx, WatchOptions{Every: time.Millisecond, Volumes: true})
	watched(t, w, NoTrouble)
	run("xfs_io", "-x", "-c", "shutdown", dir)
	watched(t, w, TroubleAway)
	if err := w.Figures()[0].Err; !Unreachable(err) {
		t.Error(err)
	}
	if l, err := s.Look(t.Context(), v.ID); err == nil && l.Err == nil || !Unreachable(errors.Join(err, l.Err)) {
		t.Errorf("%+v, %v", l, err)
	}
}

// A share that answers nothing, as a dead server does: a FUSE mount whose daemon
// reads no request.
func TestTroubleOfAShareThatHangs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	dir := t.TempDir()
	fuse, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	hang := func() { fuse.Close() } // what waits ends with ENOTCONN
	if err := syscall.Mount("hung", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fuse.Fd())); err != nil {
		fuse.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		hang()
		_ = syscall.Unmount(dir, syscall.MNT_DETACH)
	})
	s, err := OpenSet(t.Context(), time.Millisecond, func(string, error) {}, Options{Name: "p", Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w := s.Watch(ctx, WatchOptions{})
	watched(t, w, TroubleAway)
	if err := w.Figures()[0].Err; !errors.Is(err, ErrAway) {
		t.Error(err)
	}
	id := volumeID{pool: "p", hash: hashOf("a")}.String()
	if _, err := s.Look(t.Context(), id); !errors.Is(err, ErrAway) {
		t.Error(err)
	}
}
