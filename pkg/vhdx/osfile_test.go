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
