package vhdx_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// TestLockEndsWithClose: a child that is being started has what this process had
// open, until its exec. What was closed meanwhile is not in use.
func TestLockEndsWithClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.vhdx")
	child := func(f *os.File) {
		fd, err := unix.Dup(int(f.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
	}
	again := func() *vhdx.OSFile {
		t.Helper()
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		of, err := vhdx.NewOSFile(f, vhdx.FileOptions{})
		if err != nil {
			t.Fatal(err)
		}
		child(f)
		return of
	}

	d, err := vhdx.NewDraft(path)
	if err != nil {
		t.Fatal(err)
	}
	dup, err := d.Open()
	if err != nil {
		t.Fatal(err)
	}
	child(dup)
	if err := errors.Join(dup.Close(), d.Publish(false), d.Close()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := again().Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLockOfParents: what has become a parent may be read by others, and by
// nobody written, as long as there is a child that is open.
func TestLockOfParents(t *testing.T) {
	dir := t.TempDir()
	base, child := filepath.Join(dir, "base.vhdx"), filepath.Join(dir, "child.vhdx")
	lock := func(name string, readOnly bool) error {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		of, err := vhdx.NewOSFile(f, vhdx.FileOptions{ReadOnly: readOnly})
		if err != nil {
			return errors.Join(err, f.Close())
		}
		return of.Close()
	}
	parent := func(when string) {
		t.Helper()
		if err := lock(base, true); err != nil {
			t.Errorf("%s: read the parent: %v", when, err)
		}
		if err := lock(base, false); !errors.Is(err, vhdx.ErrInUse) {
			t.Errorf("%s: write the parent: %v", when, err)
		}
	}
	o := vhdx.OpenOptions{Parents: vhdx.ParentsIn(dir)}
	if _, err := vhdx.Create(base, vhdx.CreateOptions{Size: 4 << 20}); err != nil {
		t.Fatal(err)
	}
	im := open(t, base, o)
	if err := lock(base, true); !errors.Is(err, vhdx.ErrInUse) {
		t.Errorf("read a head: %v", err)
	}
	if _, err := im.CreateChild(child, vhdx.ChildOptions{}); err != nil {
		t.Fatal(err)
	}
	must(t, im.RotatePath(child, nil))
	parent("rotated away")
	must(t, im.Close())
	im = open(t, child, o)
	parent("opened by its child")
	must(t, im.Close())
	must(t, lock(base, false))
}
