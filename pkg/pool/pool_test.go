package pool

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

const gib = 1 << 30

// newSet opens a fresh pool named p and registers node n1.
func newSet(t testing.TB, change ...func(*Options)) (*Set, *Pool) {
	t.Helper()
	return openSet(t, memDir(t), change...)
}

func openSet(t testing.TB, dir string, change ...func(*Options)) (*Set, *Pool) {
	t.Helper()
	o := Options{Name: "p", Dir: dir, Overcommit: 1000, Holder: "n1"}
	for _, c := range change {
		c(&o)
	}
	p, err := Open(o)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	s, err := NewSet(p)
	if err != nil {
		t.Fatalf("new set: %v", err)
	}
	t.Cleanup(func() { s.Close() })
	return s, p
}

// memDir is a directory in memory where there is one: for tests that do not
// care what survives a power cut.
func memDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "pool-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func create(t testing.TB, s *Set, name string) Volume {
	t.Helper()
	v, err := s.CreateVolume(t.Context(), Spec{Name: name, Size: gib})
	if err != nil {
		t.Fatalf("create %q: %v", name, err)
	}
	return v
}

func register(t testing.TB, s *Set, nodes ...string) {
	t.Helper()
	for _, n := range nodes {
		if err := s.RegisterNode(t.Context(), Node{ID: n, BootID: "boot"}); err != nil {
			t.Fatalf("register %s: %v", n, err)
		}
	}
}

// audit fails the test unless the account agrees with the records, nothing is
// unfinished and nothing is a problem.
func audit(t testing.TB, p *Pool) {
	t.Helper()
	a, err := p.readAccount()
	if err != nil {
		t.Fatalf("account: %v", err)
	}
	sum, err := p.sumRecords(context.Background())
	if err != nil {
		t.Fatalf("sum: %v", err)
	}
	if a.Committed != sum.Committed || len(a.Operations) != 0 {
		t.Fatalf("I-POOL-7: the account says %d with %d operations, the records %d", a.Committed, len(a.Operations), sum.Committed)
	}
	probs := slices.DeleteFunc(p.problems(context.Background()), func(x Problem) bool { return x.Reason == unendedImport })
	if len(probs) > 0 {
		t.Fatalf("problems: %v", probs)
	}
}

func TestVolumeLife(t *testing.T) {
	s, p := newSet(t)
	ctx := t.Context()
	register(t, s, "n1", "n2")
	v := create(t, s, "pvc-1")
	audit(t, p)

	again := create(t, s, "pvc-1")
	if d := cmp.Diff(v, again); d != "" {
		t.Fatalf("a repeated creation differs (-first +second):\n%s", d)
	}
	got, err := s.Volume(ctx, v.ID)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(v, got, cmpopts.EquateEmpty()); d != "" {
		t.Fatalf("Volume differs (-created +got):\n%s", d)
	}
	if err := s.Attach(ctx, v.ID, "n1", false); err != nil {
		t.Fatal(err)
	}
	im, err := s.OpenImage(ctx, v.ID, false, vhdx.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if im.Size() != gib {
		t.Fatalf("image of %d bytes, want %d", im.Size(), gib)
	}
	if err := s.SetUse(ctx, v.ID, UseMounted); err != nil {
		t.Fatal(err)
	}
	if v, err = s.Resize(ctx, v.ID, 2*gib); err != nil || v.Size != 2*gib {
		t.Fatalf("resize: %v, %d bytes", err, v.Size)
	}
	if im.Size() != gib {
		t.Fatalf("resize changed an image that its holder has open")
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Resize(ctx, v.ID, 2*gib); err != nil {
		t.Fatal(err)
	}
	if im, err = s.OpenImage(ctx, v.ID, true, vhdx.OpenOptions{}); err != nil || im.Size() != 2*gib {
		t.Fatalf("reopen: %v", err)
	}
	im.Close()
	if err := s.Detach(ctx, v.ID, "n1"); err != nil {
		t.Fatal(err)
	}
	audit(t, p)
	if err := s.DeleteVolume(ctx, v.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Volume(ctx, v.ID); !errors.Is(err, ErrNotFound) {
		t.Fatalf("after the deletion: %v", err)
	}
	if err := s.DeleteVolume(ctx, v.ID); err != nil {
		t.Fatalf("second deletion: %v", err)
	}
	audit(t, p)
	if left := files(t, p); len(left) > 0 {
		t.Fatalf("left behind: %v", left)
	}
}

// files are the regular files below volumes, images, leases and tmp.
func files(t testing.TB, p *Pool) (out []string) {
	t.Helper()
	for _, d := range []string{dirVolumes, dirImages, dirLeases, dirTemp} {
		err := filepath.WalkDir(filepath.Join(p.tree.Name(), d), func(path string, e os.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				out = append(out, strings.TrimPrefix(path, p.tree.Name()+"/"))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(out)
	return out
}
