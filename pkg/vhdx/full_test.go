package vhdx_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// A full share fails the requests that need space and nothing else: metadata
// has its space reserved (I-SYNC-3), and what was written is flushed.
func TestFullFilesystemFailsRequestsNotTheImage(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a small filesystem")
	}
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			dir := mountSmall(t, fs)
			path := filepath.Join(dir, "disk.vhdx")
			rest, err := os.Create(filepath.Join(dir, "rest"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = rest.Close() })
			const size = 2 << 30
			if _, err := vhdx.Create(path, vhdx.CreateOptions{Size: size, BlockSize: mib}); err != nil {
				t.Fatal(err)
			}
			im := open(t, path, vhdx.OpenOptions{})
			p := bytes.Repeat([]byte{0xee}, int(mib))
			var written []int64
			failed := 0
			for off := int64(0); off < size && failed < 20; off += mib {
				_, err := im.WriteAt(p, off)
				switch {
				case err == nil:
					written = append(written, off)
				case errors.Is(err, unix.ENOSPC):
					failed++
				default:
					t.Fatalf("write at %#x: %v", off, err)
				}
				if off%(16*mib) == 0 || failed > 0 {
					if err := im.Flush(); err != nil {
						t.Fatalf("flush with %d failed writes: %v", failed, err)
					}
				}
			}
			if failed == 0 || len(written) == 0 {
				t.Fatalf("%d writes failed, %d did not: the filesystem never filled up", failed, len(written))
			}
			check := func(im *vhdx.Image) {
				got := make([]byte, mib)
				for _, off := range written {
					if _, err := im.ReadAt(got, off); err != nil || !bytes.Equal(got, p) {
						t.Fatalf("block at %#x is lost: %v", off, err)
					}
				}
			}
			check(im)
			closeImage(t, im)
			im = open(t, path, vhdx.OpenOptions{})
			check(im)
			// A session begins on the full share too: its metadata has its space.
			fillUp(t, rest)
			if !im.Full() {
				t.Error("the image does not see that its filesystem is full")
			}
			for i := range p {
				p[i] = 0xdd
			}
			for _, off := range written {
				if _, err := im.WriteAt(p, off); err != nil {
					t.Fatalf("overwrite at %#x on a full share: %v", off, err)
				}
			}
			if err := im.Flush(); err != nil {
				t.Fatal(err)
			}
			check(im)
			closeImage(t, im)
		})
	}
}

// fillUp takes the last block.
func fillUp(t *testing.T, f *os.File) {
	t.Helper()
	for n := 1 << 20; n >= 4096; n /= 2 {
		var err error
		for err == nil {
			if _, err = f.Write(make([]byte, n)); err == nil {
				err = f.Sync()
			}
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
	}
}

// mountSmall mounts a new filesystem of 300 MiB, the least that XFS makes.
func mountSmall(t *testing.T, fs string) string {
	t.Helper()
	base := t.TempDir()
	backing, dir := filepath.Join(base, "fs.img"), filepath.Join(base, "mnt")
	if err := os.WriteFile(backing, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(backing, 300*mib); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
	}
	run("mkfs."+fs, "-q", backing)
	run("mount", "-o", "loop", backing, dir)
	t.Cleanup(func() { run("umount", dir) })
	return dir
}
