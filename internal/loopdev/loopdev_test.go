package loopdev_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/loopdev"
)

// attach makes a loop device on a new file of size bytes.
func attach(t *testing.T, size int64, blockSize int, readOnly bool) (n int, tag, file string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("loop devices need root")
	}
	tag = fmt.Sprintf("loopdev-test-%d-%d", os.Getpid(), time.Now().UnixNano())
	file = filepath.Join(t.TempDir(), tag)
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	dev, err := loopdev.Attach(loopdev.Config{File: f, BlockSize: blockSize, ReadOnly: readOnly, Tag: tag})
	if err != nil {
		t.Fatal(err)
	}
	n, err = loopdev.Number(dev)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := loopdev.Detach(n, tag); err != nil && !errors.Is(err, loopdev.ErrNotBound) {
			t.Error(err)
		}
	})
	return n, tag, file
}

func TestAttachFindDetach(t *testing.T) {
	const size = 10<<20 + 512
	n, tag, _ := attach(t, size, 512, false)
	found, err := loopdev.Find(tag)
	if err != nil || len(found) != 1 || found[0].Number != n || found[0].Size != size {
		t.Fatalf("found %+v, %v", found, err)
	}
	if err := loopdev.Alive(n, tag); err != nil {
		t.Fatal(err)
	}
	if _, err := loopdev.Detach(n, "other"); !errors.Is(err, loopdev.ErrNotBound) {
		t.Fatalf("detach of another tag: %v", err)
	}
	if flush, err := loopdev.Detach(n, tag); flush != nil || err != nil {
		t.Fatal(flush, err)
	}
	if _, err := loopdev.Detach(n, tag); !errors.Is(err, loopdev.ErrNotBound) {
		t.Fatalf("detach of a free device: %v", err)
	}
	if found, err := loopdev.Find(tag); err != nil || len(found) != 0 {
		t.Fatalf("left: %+v, %v", found, err)
	}
}

// What was written through the page cache and never synced is not lost.
func TestDetachWritesDirtyPages(t *testing.T) {
	n, tag, file := attach(t, 8<<20, 4096, false)
	data := bytes.Repeat([]byte("dirty"), 1<<20/5)
	if err := os.WriteFile(loopdev.Path(n), data, 0); err != nil {
		t.Fatal(err)
	}
	if flush, err := loopdev.Detach(n, tag); flush != nil || err != nil {
		t.Fatal(flush, err)
	}
	got, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(got[:len(data)], data) {
		t.Fatalf("written data is not in the file: %v", err)
	}
}

func TestDetachBusyByOpen(t *testing.T) {
	n, tag, _ := attach(t, 8<<20, 512, false)
	f, err := os.OpenFile(loopdev.Path(n), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := loopdev.Detach(n, tag); !errors.Is(err, loopdev.ErrBusy) || !errors.Is(err, unix.EBUSY) {
		t.Fatalf("detach of an open device: %v", err)
	}
	if _, err := f.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatalf("the device does not work after a refused detach: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond)
	if found, _ := loopdev.Find(tag); len(found) != 1 {
		t.Fatal("a refused detach removed the device at the next close")
	}
}

func TestDetachBusyByMount(t *testing.T) {
	n, tag, _ := attach(t, 64<<20, 512, false)
	if out, err := exec.Command("mkfs.ext4", "-q", loopdev.Path(n)).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	dir := t.TempDir()
	if err := unix.Mount(loopdev.Path(n), dir, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	_, err := loopdev.Detach(n, tag)
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, loopdev.ErrBusy) {
		t.Fatalf("detach of a mounted device: %v", err)
	}
}

func TestSetCapacity(t *testing.T) {
	n, tag, file := attach(t, 8<<20, 512, false)
	if err := os.Truncate(file, 16<<20+1024); err != nil {
		t.Fatal(err)
	}
	if err := loopdev.SetCapacity(n, tag, 16<<20+1024); err != nil {
		t.Fatal(err)
	}
	if got := loopdev.Size(n); got != 16<<20+1024 {
		t.Fatalf("size %d", got)
	}
}

func TestReadOnly(t *testing.T) {
	n, tag, _ := attach(t, 8<<20, 512, true)
	if f, err := os.OpenFile(loopdev.Path(n), os.O_RDWR, 0); err == nil {
		_, err = f.WriteAt(make([]byte, 512), 0)
		_ = f.Close()
		if err == nil {
			t.Fatal("a read-only device was written")
		}
	}
	if flush, err := loopdev.Detach(n, tag); flush != nil || err != nil {
		t.Fatal(flush, err)
	}
}

// Many at once race for the same free device.
func TestRaceForFreeDevice(t *testing.T) {
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			dir, err := os.MkdirTemp(t.TempDir(), "")
			if err != nil {
				t.Error(err)
				return
			}
			tag := "loopdev-race-" + filepath.Base(dir)
			f, err := os.Create(filepath.Join(dir, tag))
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			_ = f.Truncate(1 << 20)
			dev, err := loopdev.Attach(loopdev.Config{File: f, BlockSize: 512, Tag: tag})
			if err != nil {
				t.Error(err)
				return
			}
			n, _ := loopdev.Number(dev)
			if _, err := loopdev.Detach(n, tag); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestNumber(t *testing.T) {
	for _, bad := range []string{"", "/dev/loop", "/dev/loop-control", "/dev/loop-1", "loop1", "/dev/loop1p1"} {
		if n, err := loopdev.Number(bad); err == nil {
			t.Errorf("%q is %d", bad, n)
		}
	}
}
