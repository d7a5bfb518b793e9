package fsx

import (
	"bytes"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// plant puts each kind of thing that is no regular file into d.
func plant(t *testing.T, dir string) []string {
	t.Helper()
	at := func(name string) string { return filepath.Join(dir, "d", name) }
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: at("socket"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	err = errors.Join(
		unix.Mkfifo(at("fifo"), 0o600), os.Mkdir(at("directory"), 0o700), os.Symlink("/etc/passwd", at("absolute")),
		os.Symlink("../../../../../etc/passwd", at("outside")), os.WriteFile(at("real"), []byte("real"), 0o600),
		os.Symlink("real", at("inside")), os.Symlink("none", at("dangling")), os.Symlink("loop", at("loop")),
	)
	if err != nil {
		t.Fatal(err)
	}
	return []string{"socket", "fifo", "directory", "absolute", "outside", "inside", "dangling", "loop"}
}

func TestForeign(t *testing.T) {
	tree, dir := newTree(t)
	for _, name := range plant(t, dir) {
		done := make(chan error, 3)
		go func() {
			_, err := tree.Read("d/"+name, 10)
			done <- err
			for _, flag := range []int{os.O_RDONLY, os.O_RDWR} {
				f, err := tree.Open("d/"+name, flag, 0)
				if err == nil {
					f.Close()
				}
				done <- err
			}
		}()
		for range 3 {
			select {
			case err := <-done:
				if !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "d/"+name) {
					t.Fatalf("%s: %v", name, err)
				}
			case <-time.After(30 * time.Second):
				t.Fatalf("%s blocks", name)
			}
		}
		if f, err := tree.Open("d/"+name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err == nil {
			f.Close()
			t.Fatalf("%s: created over it", name)
		}
	}
	if _, err := tree.Open("d/new", os.O_RDWR|os.O_CREATE, 0o600); err == nil {
		t.Fatal("O_CREATE without O_EXCL")
	}
}

func TestForeignDirectory(t *testing.T) {
	tree, dir := newTree(t)
	outside := t.TempDir()
	if err := errors.Join(os.Symlink(outside, filepath.Join(dir, "out")), os.Symlink("d", filepath.Join(dir, "in")),
		os.WriteFile(filepath.Join(dir, "file"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"out", "in", "file"} {
		for what, err := range map[string]error{
			"replace": tree.Replace(name+"/f", nil), "link": tree.LinkOnce(name+"/f", nil), "mkdir": tree.Mkdir(name + "/d"),
			"remove": tree.Remove(name + "/f"), "sync": tree.SyncDir(name),
		} {
			if !errors.Is(err, ErrForeign) {
				t.Fatalf("%s below %s: %v", what, name, err)
			}
		}
	}
	for _, name := range []string{"../x", "d/../../x", "/etc/passwd", ".."} {
		if _, err := tree.Read(name, 10); err == nil {
			t.Fatalf("read %s", name)
		}
	}
	if left, _ := os.ReadDir(outside); len(left) > 0 {
		t.Fatalf("written outside: %v", left)
	}
}

func TestReadLimit(t *testing.T) {
	tree, _ := newTree(t)
	if err := tree.Replace("d/f", bytes.Repeat([]byte("x"), 100)); err != nil {
		t.Fatal(err)
	}
	if b, err := tree.Read("d/f", 100); err != nil || len(b) != 100 {
		t.Fatal(err)
	}
	if _, err := tree.Read("d/f", 99); !errors.Is(err, ErrTooLarge) {
		t.Fatalf("%v", err)
	}
}

func TestNames(t *testing.T) {
	tree, dir := newTree(t)
	want := append(plant(t, dir), "real")
	slices.Sort(want)
	d, err := tree.Dir("d")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	names, err := d.Names()
	if err != nil {
		t.Fatal(err)
	}
	entries, err := d.Entries()
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for i, e := range entries {
		if e.Name() != names[i] {
			t.Fatalf("%s and %s", e.Name(), names[i])
		}
		kinds = append(kinds, KindOf(e.Type()))
	}
	if d := cmp.Diff(want, names); d != "" {
		t.Fatal(d)
	}
	if d := cmp.Diff([]string{"symlink", "symlink", "directory", "FIFO", "symlink", "symlink", "symlink", "regular file", "socket"}, kinds); d != "" {
		t.Fatal(d)
	}
	if err := d.Refresh(); err != nil {
		t.Fatal(err)
	}
	if KindOf(fs.ModeDevice) != "device" || KindOf(fs.ModeIrregular) != "special file" {
		t.Fatal("kinds")
	}
}
