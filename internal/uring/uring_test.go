package uring_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/helper"
	"github.com/csi-vhdx/csi-driver-vhdx/internal/uring"
)

func newRing(t testing.TB, entries uint32) *uring.Ring {
	t.Helper()
	runtime.LockOSThread()
	r, err := uring.New(entries)
	if err != nil {
		runtime.UnlockOSThread()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		runtime.UnlockOSThread()
	})
	return r
}

func mapped(t testing.TB, n int) []byte {
	t.Helper()
	mem, err := uring.Map(n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := uring.Unmap(mem); err != nil {
			t.Error(err)
		}
	})
	return mem
}

// wait submits and takes n completions, by tag.
func wait(t testing.TB, r *uring.Ring, n int) map[uint64]int32 {
	t.Helper()
	got := map[uint64]int32{}
	for len(got) < n {
		if err := r.Enter(1); err != nil {
			t.Fatal(err)
		}
		var c uring.Completion
		for r.Next(&c) {
			got[c.Tag] = c.Res
		}
	}
	return got
}

func TestFileOperations(t *testing.T) {
	r := newRing(t, 8)
	mem := mapped(t, 64<<10)
	f, err := os.Create(t.TempDir() + "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := r.RegisterBuffer(mem); err != nil {
		t.Fatal(err)
	}
	if err := r.RegisterFiles(int32(f.Fd())); err != nil {
		t.Fatal(err)
	}
	plain, fixed := uring.FD(f.Fd()), uring.Fixed(0)
	_, _ = rand.Read(mem[:16<<10])
	r.Write(plain, mem[:4096], 0, 1)
	r.WriteFixed(fixed, mem[4096:8192], 4096, 2)
	if got := wait(t, r, 2); got[1] != 4096 || got[2] != 4096 {
		t.Fatalf("writes: %v", got)
	}
	r.Fdatasync(fixed, 3)
	r.Fallocate(plain, unix.FALLOC_FL_KEEP_SIZE|unix.FALLOC_FL_PUNCH_HOLE, 0, 4096, 4)
	if got := wait(t, r, 2); got[3] != 0 || got[4] != 0 {
		t.Fatalf("sync and punch: %v", got)
	}
	r.Read(fixed, mem[16<<10:20<<10], 0, 5)
	r.ReadFixed(plain, mem[20<<10:24<<10], 4096, 6)
	r.Read(plain, mem[24<<10:28<<10], 1<<20, 7)
	r.Read(uring.FD(9999), mem[24<<10:28<<10], 0, 8)
	if got := wait(t, r, 4); got[5] != 4096 || got[6] != 4096 || got[7] != 0 || got[8] != -int32(syscall.EBADF) {
		t.Fatalf("reads: %v", got)
	}
	if !bytes.Equal(mem[16<<10:20<<10], make([]byte, 4096)) || !bytes.Equal(mem[20<<10:24<<10], mem[4096:8192]) {
		t.Fatal("what was read is not what was written")
	}
}

// A file takes another's place; one that was not there comes.
func TestUpdateFile(t *testing.T) {
	r := newRing(t, 8)
	mem := mapped(t, 8192)
	var fds []int32
	for i := range 2 {
		f, err := os.Create(fmt.Sprintf("%s/%d", t.TempDir(), i))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(strings.Repeat(string(rune('a'+i)), 4096)); err != nil {
			t.Fatal(err)
		}
		fds = append(fds, int32(f.Fd()))
	}
	if err := r.RegisterFiles(fds[0], -1); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"a", "b", "b"} {
		if i > 0 {
			if err := r.UpdateFile(2-i, fds[1]); err != nil {
				t.Fatal(err)
			}
		}
		slot := []int{0, 1, 0}[i]
		r.Read(uring.Fixed(slot), mem[:4096], 0, 1)
		if got := wait(t, r, 1); got[1] != 4096 || string(mem[:1]) != want {
			t.Fatalf("slot %d: %v, %q, want %q", slot, got, mem[:1], want)
		}
	}
	if err := r.UpdateFile(9, fds[0]); err == nil {
		t.Fatal("a slot that is not there was taken")
	}
}

// I-URING-2: more is queued than the queue holds.
func TestQueueFull(t *testing.T) {
	r := newRing(t, 4)
	for i := range 14 {
		r.Nop(uint64(i))
	}
	if got := wait(t, r, 14); len(got) != 14 {
		t.Fatalf("%d of 14 completed", len(got))
	}
}

func TestCancelAll(t *testing.T) {
	r := newRing(t, 8)
	mem := mapped(t, 4096)
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(p[0]); _ = unix.Close(p[1]) }()
	r.Read(uring.FD(p[0]), mem[:8], uring.NoOffset, 1)
	r.Read(uring.FD(p[0]), mem[8:16], uring.NoOffset, 2)
	if err := r.Enter(0); err != nil {
		t.Fatal(err)
	}
	r.CancelAll(3)
	if got := wait(t, r, 3); got[1] != -int32(unix.ECANCELED) || got[2] != -int32(unix.ECANCELED) || got[3] != 2 {
		t.Fatalf("got %v", got)
	}
}

func TestWriteQuiet(t *testing.T) {
	r := newRing(t, 8)
	mem := mapped(t, 4096)
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(p[1]) }()
	copy(mem, "hello")
	r.WriteQuiet(uring.FD(p[1]), mem[:5], uring.NoOffset, 1)
	r.Nop(2)
	if got := wait(t, r, 1); len(got) != 1 || got[2] != 0 {
		t.Fatalf("got %v", got)
	}
	b := make([]byte, 10)
	if n, err := unix.Read(p[0], b); err != nil || string(b[:n]) != "hello" {
		t.Fatalf("got %q, %v", b[:n], err)
	}
	_ = unix.Close(p[0])
	r.WriteQuiet(uring.FD(p[1]), mem[:5], uring.NoOffset, 3)
	if got := wait(t, r, 1); got[3] != -int32(unix.EPIPE) {
		t.Fatalf("a failure stays quiet: %v", got)
	}
}

// A thousand items from another goroutine; none is left behind in a sleep.
func TestWaker(t *testing.T) {
	r := newRing(t, 8)
	mem := mapped(t, 4096)
	w, err := uring.NewWaker(mem)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	const items = 1000
	var left, taken atomic.Int64
	go func() {
		for range items {
			left.Add(1)
			w.Wake()
			for taken.Load() < left.Load() {
				time.Sleep(time.Microsecond)
			}
		}
	}()
	w.Arm(r, 7)
	var c uring.Completion
	for taken.Load() < items {
		w.Sleep()
		if left.Load() > taken.Load() {
			w.Awake()
			taken.Store(left.Load())
			if err := r.Enter(0); err != nil {
				t.Fatal(err)
			}
		} else if err := r.Enter(1); err != nil {
			t.Fatal(err)
		}
		w.Awake()
		for r.Next(&c) {
			if c.Tag == 7 {
				w.Seen()
				w.Arm(r, 7)
			}
		}
		taken.Store(left.Load())
	}
}

// I-URING-1
func TestNoAllocation(t *testing.T) {
	r := newRing(t, 8)
	mem := mapped(t, 8192)
	f, err := os.Create(t.TempDir() + "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd := uring.FD(f.Fd())
	var c uring.Completion
	a := testing.AllocsPerRun(100, func() {
		r.Write(fd, mem[:4096], 0, 1)
		r.Read(fd, mem[4096:], 0, 2)
		for n := 0; n < 2; {
			_ = r.Enter(1)
			for r.Next(&c) {
				n++
			}
		}
	})
	if a != 0 {
		t.Fatalf("%v allocations", a)
	}
}

// I-URING-3: under a limit Map says which one, and how to raise it.
func TestMapUnderLimit(t *testing.T) {
	_, err := helper.RunSelf(t.Context(), time.Minute, "map-under-limit")
	if !errors.Is(err, unix.ENOMEM) || !strings.Contains(err.Error(), "RLIMIT_MEMLOCK is 64 KiB") {
		t.Fatalf("got %v", err)
	}
}

// mapUnderLimit runs in a process of its own, for it gives up a capability.
func mapUnderLimit(*helper.Child) error {
	runtime.LockOSThread()
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: 64 << 10, Max: 64 << 10}); err != nil {
		return err
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData // none
	if err := unix.Capset(&hdr, &caps[0]); err != nil {
		return err
	}
	_, err := uring.Map(1 << 20)
	return err
}

func TestMain(m *testing.M) {
	helper.RunIfHelper(helper.Command{Name: "map-under-limit", Run: mapUnderLimit})
	os.Exit(m.Run())
}

func BenchmarkNop(b *testing.B) {
	r := newRing(b, 8)
	var c uring.Completion
	for b.Loop() {
		r.Nop(1)
		if err := r.Enter(1); err != nil {
			b.Fatal(err)
		}
		for r.Next(&c) {
		}
	}
}
