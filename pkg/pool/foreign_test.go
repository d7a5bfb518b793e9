package pool

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// bounded fails the test if fn blocks, as an open of a FIFO does.
func bounded(t *testing.T, what string, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); fn() }()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatalf("%s blocks", what)
	}
}

// vandals put something into the place of a file.
var vandals = map[string]func(path string) error{
	"nothing":   func(p string) error { return os.Remove(p) },
	"empty":     func(p string) error { return os.Truncate(p, 0) },
	"half":      func(p string) error { fi, _ := os.Stat(p); return os.Truncate(p, fi.Size()/2) },
	"binary":    func(p string) error { return os.WriteFile(p, []byte("\x00\xff\xfe{{{"), 0o600) },
	"array":     func(p string) error { return os.WriteFile(p, []byte(`[1,2,3]`), 0o600) },
	"null":      func(p string) error { return os.WriteFile(p, []byte(`null`), 0o600) },
	"no fields": func(p string) error { return os.WriteFile(p, []byte(`{"format":1}`), 0o600) },
	"wrong types": func(p string) error {
		return os.WriteFile(p, []byte(`{"format":1,"size":"x","id":7,"committed":[]}`), 0o600)
	},
	"deep":      func(p string) error { return os.WriteFile(p, []byte(strings.Repeat("[", 60000)), 0o600) },
	"huge":      func(p string) error { return os.Truncate(p, 1<<40) },
	"fifo":      func(p string) error { return errors.Join(os.Remove(p), unix.Mkfifo(p, 0o600)) },
	"directory": func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o700)) },
	"symlink to shadow": func(p string) error {
		return errors.Join(os.Remove(p), os.Symlink("/etc/shadow", p))
	},
	"symlink to a copy": func(p string) error {
		return errors.Join(os.Rename(p, p+".orig"), os.Symlink(filepath.Base(p)+".orig", p))
	},
	"socket": func(p string) error {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: p + "s", Net: "unix"})
		if err != nil {
			return err
		}
		l.SetUnlinkOnClose(false)
		l.Close()
		return os.Rename(p+"s", p)
	},
}

// TestForeignRecord puts garbage into the place of one volume's record. That
// volume cannot be used; nothing else notices, and Problems names it.
func TestForeignRecord(t *testing.T) {
	for name, vandal := range vandals {
		t.Run(name, func(t *testing.T) {
			s, p := newSet(t)
			ctx := t.Context()
			register(t, s, "n1")
			good, bad := create(t, s, "good"), create(t, s, "bad")
			path := p.recordPath(hashOf("bad"))
			if err := vandal(filepath.Join(p.tree.Name(), path)); err != nil {
				t.Fatal(err)
			}
			want := ErrDamaged
			if name == "nothing" {
				want = ErrNotFound
			}
			bounded(t, "an operation", func() {
				if _, err := s.Volume(ctx, bad.ID); !errors.Is(err, want) {
					t.Errorf("Volume: %v", err)
				}
				if err := s.Attach(ctx, bad.ID, "n1", false); !errors.Is(err, want) {
					t.Errorf("Attach: %v", err)
				}
				if _, err := s.Resize(ctx, bad.ID, 2*gib); !errors.Is(err, want) {
					t.Errorf("Resize: %v", err)
				}
				if _, err := s.OpenImage(ctx, bad.ID, false, vhdx.OpenOptions{}); !errors.Is(err, want) {
					t.Errorf("OpenImage: %v", err)
				}
				if name != "nothing" {
					if _, err := s.CreateVolume(ctx, Spec{Name: "bad", Size: gib}); !errors.Is(err, ErrDamaged) {
						t.Errorf("I-POOL-4: CreateVolume: %v", err)
					}
					if err := s.DeleteVolume(ctx, bad.ID); !errors.Is(err, ErrDamaged) {
						t.Errorf("I-POOL-4: DeleteVolume: %v", err)
					}
				}
				vols, _, err := s.List(ctx, "", 0)
				if err != nil || len(vols) != 1 || vols[0].ID != good.ID {
					t.Errorf("List: %v, %v", err, vols)
				}
				if _, err := s.Resize(ctx, good.ID, 2*gib); err != nil {
					t.Errorf("the other volume: %v", err)
				}
				if _, err := s.CreateVolume(ctx, Spec{Name: "another", Size: gib}); err != nil {
					t.Errorf("a new volume: %v", err)
				}
			})
			if _, err := os.Stat(bad.Image); err != nil {
				t.Fatalf("I-POOL-4: the image is gone: %v", err)
			}
			named := func(p Problem) bool {
				return p.Path == path || name == "nothing" && p.Path == imagePath(strings.TrimSuffix(filepath.Base(bad.Image), ".vhdx"))
			}
			if probs := s.Problems(ctx); !slices.ContainsFunc(probs, named) {
				t.Fatalf("Problems does not name %s: %v", path, probs)
			}
		})
	}
}

// TestForeignAccount: whatever happens to the account, the next operation
// counts the records again.
func TestForeignAccount(t *testing.T) {
	for name, vandal := range vandals {
		if name == "directory" || name == "symlink to a copy" {
			continue // below
		}
		t.Run(name, func(t *testing.T) {
			s, p := newSet(t)
			create(t, s, "one")
			if err := vandal(filepath.Join(p.tree.Name(), fileAccount)); err != nil {
				t.Fatal(err)
			}
			bounded(t, "a creation", func() {
				if name != "nothing" && len(s.Problems(t.Context())) == 0 {
					t.Error("no problem is reported")
				}
				create(t, s, "two")
			})
			audit(t, p)
		})
	}
	t.Run("directory", func(t *testing.T) {
		s, p := newSet(t)
		create(t, s, "one")
		if err := vandals["directory"](filepath.Join(p.tree.Name(), fileAccount)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.CreateVolume(t.Context(), Spec{Name: "two", Size: gib}); err == nil || !strings.Contains(err.Error(), fileAccount) {
			t.Fatalf("an error that names %s is wanted: %v", fileAccount, err)
		}
	})
}

// TestForeignMarker: a damaged marker keeps the pool closed, with a reason, and
// nothing is written over it.
func TestForeignMarker(t *testing.T) {
	for name, vandal := range vandals {
		t.Run(name, func(t *testing.T) {
			dir := memDir(t)
			s, _ := openSet(t, dir)
			create(t, s, "one")
			if err := vandal(filepath.Join(dir, fileMarker)); err != nil {
				t.Fatal(err)
			}
			want := ErrDamaged
			if name == "nothing" {
				want = ErrNotAPool
			}
			bounded(t, "Open", func() {
				if _, err := Open(Options{Name: "p", Dir: dir}); !errors.Is(err, want) || !strings.Contains(err.Error(), fileMarker) {
					t.Errorf("Open: %v", err)
				}
			})
		})
	}
}

// TestForeignImage: garbage in the place of an image is never opened or removed
// as if it were one.
func TestForeignImage(t *testing.T) {
	for _, name := range []string{"nothing", "fifo", "directory", "symlink to shadow", "symlink to a copy", "socket"} {
		t.Run(name, func(t *testing.T) {
			s, _ := newSet(t)
			ctx := t.Context()
			v := create(t, s, "one")
			if err := vandals[name](v.Image); err != nil {
				t.Fatal(err)
			}
			bounded(t, "OpenImage", func() {
				if _, err := s.OpenImage(ctx, v.ID, false, vhdx.OpenOptions{}); !errors.Is(err, ErrDamaged) {
					t.Errorf("OpenImage: %v", err)
				}
				if _, err := s.OpenImage(ctx, v.ID, true, vhdx.OpenOptions{}); !errors.Is(err, ErrDamaged) {
					t.Errorf("OpenImage read-only: %v", err)
				}
			})
			if len(s.Problems(ctx)) == 0 {
				t.Error("no problem is reported")
			}
			err := s.DeleteVolume(ctx, v.ID)
			if name == "nothing" && err != nil || name != "nothing" && !errors.Is(err, ErrDamaged) {
				t.Errorf("DeleteVolume: %v", err)
			}
		})
	}
}

// TestForeignDirectories: foreign things around the records are named, never
// followed, and stop nothing; a shard that is a symlink is not one.
func TestForeignDirectories(t *testing.T) {
	s, p := newSet(t)
	ctx := t.Context()
	v := create(t, s, "good")
	root := p.tree.Name()
	outside := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	shard := func(used string) string { // one that "good" does not use
		if used == "aa" {
			return "ab"
		}
		return "aa"
	}
	linked := filepath.Join(dirVolumes, shard(hashOf("good").shard()))
	must(os.Symlink(outside, filepath.Join(root, linked)))
	must(os.WriteFile(filepath.Join(root, "README.txt"), nil, 0o600))
	must(os.WriteFile(filepath.Join(root, dirVolumes, "stray"), nil, 0o600))
	must(os.Mkdir(filepath.Join(root, dirImages, "zz"), 0o700))
	must(unix.Mkfifo(filepath.Join(root, dirVolumes, hashOf("good").shard(), "fifo"), 0o600))
	must(os.WriteFile(filepath.Join(root, filepath.Dir(p.recordPath(hashOf("good"))), "x.json"), nil, 0o600))
	must(os.WriteFile(filepath.Join(root, dirTemp, "foreign"), nil, 0o600))
	must(os.WriteFile(filepath.Join(root, ".nfs0000001"), nil, 0o600)) // what NFS leaves is nobody's fault
	var got []string
	bounded(t, "Problems", func() {
		for _, pr := range s.Problems(ctx) {
			got = append(got, pr.Path)
		}
	})
	slices.Sort(got)
	want := []string{
		"README.txt", linked, dirVolumes + "/stray", dirImages + "/zz", dirTemp + "/foreign",
		dirVolumes + "/" + hashOf("good").shard() + "/fifo", filepath.Dir(p.recordPath(hashOf("good"))) + "/x.json",
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Fatalf("problems:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	vols, _, err := s.List(ctx, "", 0)
	if err != nil || len(vols) != 1 || vols[0].ID != v.ID {
		t.Fatalf("List: %v, %v", err, vols)
	}
	name := nameIn(filepath.Base(linked))
	if _, err := s.CreateVolume(ctx, Spec{Name: name, Size: gib}); !errors.Is(err, ErrDamaged) {
		t.Fatalf("I-POOL-12: a creation below a symlink: %v", err)
	}
	if left, _ := os.ReadDir(outside); len(left) > 0 {
		t.Fatalf("I-POOL-12: written outside: %v", left)
	}
}

// nameIn finds a volume name whose record belongs into a shard.
func nameIn(shard string) string {
	for i := 0; ; i++ {
		if n := "n" + strings.Repeat("x", i%100) + strings.Repeat("y", i/100); hashOf(n).shard() == shard {
			return n
		}
	}
}
