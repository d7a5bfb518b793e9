package devtest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
)

// filesystem is how to make, grow and check one.
type filesystem struct {
	name  string
	mkfs  []string
	fsck  []string
	grow  func(dev, dir string) []string
	first int64 // size that mkfs accepts
}

var filesystems = []filesystem{
	{"ext4", []string{"mkfs.ext4", "-q", "-F"}, []string{"fsck.ext4", "-f", "-n"},
		func(dev, _ string) []string { return []string{"resize2fs", dev} }, 64 * mib},
	{"xfs", []string{"mkfs.xfs", "-q", "-f", "-s", "size=4096"}, []string{"xfs_repair", "-n"},
		func(_, dir string) []string { return []string{"xfs_growfs", dir} }, 320 * mib},
	{"btrfs", []string{"mkfs.btrfs", "-q", "-f"}, []string{"btrfs", "check"},
		func(_, dir string) []string { return []string{"btrfs", "filesystem", "resize", "max", dir} }, 160 * mib},
}

// run runs a tool, which may wait for the device as the test process may not.
func run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return string(out)
}

// mount mounts the device until the end of the test, or until unmount.
func mount(t *testing.T, d blockdev.Device, fs string) (dir string, unmount func()) {
	t.Helper()
	dir = t.TempDir()
	run(t, "mount", "-t", fs, d.Path(), dir)
	mounted := true
	unmount = func() {
		if !mounted {
			return
		}
		out, err := exec.Command("umount", dir).CombinedOutput()
		for range 50 {
			if err == nil || !strings.Contains(string(out), "busy") {
				break
			}
			time.Sleep(20 * time.Millisecond)
			out, err = exec.Command("umount", dir).CombinedOutput()
		}
		if err != nil {
			t.Errorf("unmount %s: %v: %s", fs, err, out)
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
		mounted = false
	}
	t.Cleanup(unmount)
	return dir, unmount
}

// testFilesystems: mkfs, mount, write, fstrim, grow while mounted, unmount,
// mount again, compare, fsck.
func testFilesystems(t *testing.T, b Backend) {
	for _, fs := range filesystems {
		for _, sector := range []int{512, 4096} {
			if testing.Short() && (fs.name != "ext4" || sector != 512) {
				continue
			}
			t.Run(fmt.Sprintf("%s-%d", fs.name, sector), func(t *testing.T) { fs.test(t, b, sector) })
		}
	}
}

func (fs filesystem) test(t *testing.T, b Backend, sector int) {
	im := b.NewImage(t, fs.first, sector)
	d := attach(t, b, im)
	run(t, append(fs.mkfs, d.Path())...)
	dir, unmount := mount(t, d, fs.name)
	sums := map[string]string{}
	for i := range 4 {
		writeFile(t, filepath.Join(dir, fmt.Sprint("file", i)), 5*mib+int64(i)*1000, sums)
	}
	run(t, "rm", filepath.Join(dir, "file0"))
	delete(sums, filepath.Join(dir, "file0"))
	run(t, "fstrim", dir)
	if err := im.Grow(2 * fs.first); err != nil {
		t.Fatal(err)
	}
	if err := d.Resize(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !fs.growOnline(t, d, dir) {
		// The device has grown under a mounted file system all the same.
		unmount()
		run(t, "e2fsck", "-f", "-p", d.Path())
		run(t, fs.grow(d.Path(), dir)...)
		old := dir
		dir, unmount = mount(t, d, fs.name)
		for path, sum := range sums {
			delete(sums, path)
			sums[filepath.Join(dir, strings.TrimPrefix(path, old))] = sum
		}
	}
	var blocks, size int64
	if _, err := fmt.Sscan(run(t, "stat", "-f", "-c", "%b %S", dir), &blocks, &size); err != nil {
		t.Fatal(err)
	}
	if total := blocks * size; total < fs.first*3/2 {
		t.Fatalf("%s has %d MiB after it grew to %d MiB", fs.name, total/mib, 2*fs.first/mib)
	}
	writeFile(t, filepath.Join(dir, "more"), fs.first, sums) // does not fit without growth
	unmount()
	run(t, append(fs.fsck, d.Path())...)
	again, unmount := mount(t, d, fs.name)
	for path, sum := range sums {
		if got := sumOf(t, filepath.Join(again, filepath.Base(path))); got != sum {
			t.Errorf("%s changed", path)
		}
	}
	unmount()
}

// growOnline grows the mounted file system; false: this process may not.
// ext4's needs CAP_SYS_RESOURCE, which a container may lack.
func (fs filesystem) growOnline(t *testing.T, d blockdev.Device, dir string) bool {
	t.Helper()
	args := fs.grow(d.Path(), dir)
	out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput()
	if err == nil {
		return true
	}
	if fs.name == "ext4" && strings.Contains(string(out), "Permission denied") {
		t.Log("resize2fs of a mounted file system is not permitted here (CAP_SYS_RESOURCE); growing it unmounted")
		return false
	}
	t.Fatalf("%q: %v\n%s", args, err, out)
	return false
}

func writeFile(t *testing.T, path string, n int64, sums map[string]string) {
	t.Helper()
	f, err := openFile(t, path, os.O_CREATE|os.O_WRONLY)
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	r := random(t)
	buf := make([]byte, mib)
	fill(r, buf)
	for at := int64(0); at < n; at += mib {
		buf[r.IntN(len(buf))]++
		p := buf[:min(n-at, mib)]
		_, _ = h.Write(p)
		if _, err := f.WriteAt(p, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(f.sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	sums[path] = fmt.Sprintf("%x", h.Sum(nil))
}

func sumOf(t *testing.T, path string) string {
	t.Helper()
	sum, _, _ := strings.Cut(run(t, "sha256sum", path), " ")
	return sum
}

func testDetachBusyMounted(t *testing.T, b Backend) {
	d := attach(t, b, b.NewImage(t, 64*mib, 512))
	run(t, "mkfs.ext4", "-q", "-F", d.Path())
	dir, unmount := mount(t, d, "ext4")
	if err := d.Detach(t.Context()); !errors.Is(err, blockdev.ErrBusy) {
		t.Fatalf("Detach of a mounted device: %v", err)
	}
	sums := map[string]string{}
	path := filepath.Join(dir, "f")
	writeFile(t, path, mib, sums)
	if sumOf(t, path) != sums[path] {
		t.Fatal("the device does not work after a refused Detach")
	}
	unmount()
	if err := d.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// testResize: the device follows the image, open and in use.
func testResize(t *testing.T, b Backend) {
	im := b.NewImage(t, 8*mib, 512)
	d := attach(t, b, im)
	f := open(t, d, unix.O_DIRECT)
	for _, size := range []int64{8*mib + 512, 20 * mib, 70*mib + 1024} {
		if err := im.Grow(size); err != nil {
			t.Fatal(err)
		}
		if err := d.Resize(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := blockIoctl(t, f, unix.BLKGETSIZE64); got != size {
			t.Fatalf("size %d, want %d", got, size)
		}
		p, got := aligned(512), aligned(512)
		if _, err := f.ReadAt(got, size-512); err != nil {
			t.Fatal(err)
		}
		differ(t, "new space", got, p, size-512)
		fill(random(t), p)
		if _, err := f.WriteAt(p, size-512); err != nil {
			t.Fatal(err)
		}
		if _, err := f.ReadAt(got, size-512); err != nil {
			t.Fatal(err)
		}
		differ(t, "new end", got, p, size-512)
	}
	if err := d.Resize(t.Context()); err != nil {
		t.Fatalf("a resize that changes nothing: %v", err)
	}
}

// testResizeUnderLoad: the device follows the image while writes end all the
// time, each of which tells the kernel something about the size as well.
func testResizeUnderLoad(t *testing.T, b Backend) {
	im := b.NewImage(t, 8*mib, 512)
	d := attach(t, b, im)
	f := open(t, d, unix.O_DIRECT)
	ctx, stop := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	for i := range int64(8) {
		writers.Go(func() {
			for p := aligned(4096); ctx.Err() == nil; {
				if _, err := f.WriteAt(p, i*mib); err != nil {
					t.Errorf("write while the device grows: %v", err)
					return
				}
			}
		})
	}
	defer writers.Wait()
	defer stop()
	for size := int64(9 * mib); size <= 40*mib; size += 4 * mib {
		if err := im.Grow(size); err != nil {
			t.Fatal(err)
		}
		if err := d.Resize(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := blockIoctl(t, f, unix.BLKGETSIZE64); got != size {
			t.Fatalf("size %d, want %d", got, size)
		}
	}
}
