package disk_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/disk"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// sharing is a directory on a filesystem that can share data between files,
// for whom may mount one.
func sharing(t *testing.T) (dir string, can bool) {
	dir = t.TempDir()
	if os.Geteuid() != 0 {
		return dir, false
	}
	img := filepath.Join(t.TempDir(), "xfs")
	if err := os.WriteFile(img, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(img, 512*mib); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"mkfs.xfs", "-q", "-m", "reflink=1", img}, {"mount", "-o", "loop", img, dir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v\n%s", err, out)
		}
	})
	return dir, true
}

// Data that the filesystem shares is what was there, in all directions and
// through a chain, and stays it when the source is written to.
func TestCopyShared(t *testing.T) {
	dir, can := sharing(t)
	r := rand.New(rand.NewPCG(11, 11))
	want := content(r, 24*mib+1536)
	size := int64(len(want))
	raw := filepath.Join(dir, "raw")
	if err := os.WriteFile(raw, want, 0o600); err != nil {
		t.Fatal(err)
	}
	path := func(name string) string { return filepath.Join(dir, name) }
	copied := func(name string, src disk.Source, o vhdx.CreateOptions, shares bool) {
		t.Helper()
		o.Size = size
		im, _, err := disk.CreateImage(path(name), o)
		if err != nil {
			t.Fatal(err)
		}
		s, err := disk.Copy(t.Context(), im, src, disk.Options{Blank: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := im.Publish(false); err != nil {
			t.Fatal(err)
		}
		if (s.Cloned > 0) != (can && shares) {
			t.Errorf("%s: %+v", name, s)
		}
		same(t, path(name), want)
	}
	copied("a.vhdx", openFile(t, raw), vhdx.CreateOptions{BlockSize: mib}, true)
	copied("fixed.vhdx", openFile(t, raw), vhdx.CreateOptions{Fixed: true}, false)

	// A child that has some of the data, in parts of blocks.
	if _, err := vhdx.CreateChild(path("child.vhdx"), path("a.vhdx"), vhdx.ChildOptions{BlockSize: 2 * mib}); err != nil {
		t.Fatal(err)
	}
	child := openImage(t, path("child.vhdx"), false)
	for range 8 {
		off := r.Int64N(size/512-300) * 512
		part := bytes.Repeat([]byte{byte(r.Uint32())}, 512*(1+r.IntN(300)))
		if _, err := child.WriteAt(part, off); err != nil {
			t.Fatal(err)
		}
		copy(want[off:], part)
	}
	if err := child.Flush(); err != nil {
		t.Fatal(err)
	}
	copied("whole.vhdx", child, vhdx.CreateOptions{BlockSize: 4 * mib}, true)
	if _, err := child.WriteAt(bytes.Repeat([]byte{0xee}, 3*mib), mib); err != nil { // whole.vhdx must not follow
		t.Fatal(err)
	}
	same(t, path("whole.vhdx"), want)

	whole := openImage(t, path("whole.vhdx"), true)
	back, err := disk.CreateFile(path("back"), size)
	if err != nil {
		t.Fatal(err)
	}
	s, err := disk.Copy(t.Context(), back, whole, disk.Options{Blank: true})
	if err != nil {
		t.Fatal(err)
	}
	if (s.Cloned > 0) != can {
		t.Errorf("to raw: %+v", s)
	}
	if err := back.Publish(false); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path("back")); err != nil || !bytes.Equal(got, want) {
		t.Errorf("to raw: differs, %v", err)
	}
}

func openImage(t *testing.T, path string, readOnly bool) *vhdx.Image {
	t.Helper()
	im, err := vhdx.OpenPath(path, vhdx.OpenOptions{ReadOnly: readOnly, Parents: vhdx.ParentsIn(filepath.Dir(path))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := im.Close(); err != nil {
			t.Error(err)
		}
	})
	return im
}

func same(t *testing.T, path string, want []byte) {
	t.Helper()
	im, err := vhdx.OpenPath(path, vhdx.OpenOptions{ReadOnly: true, RefuseDirty: true})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if got := readAll(t, im, im.Size()); !bytes.Equal(got, want) {
		t.Fatalf("%s differs", path)
	}
}
