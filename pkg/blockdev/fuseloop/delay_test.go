package fuseloop

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	w "github.com/csi-vhdx/csi-driver-vhdx/internal/fusewire"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
)

func limited(t *testing.T, l blockdev.Limits, noRing bool) *kernel {
	t.Helper()
	return newKernelWith(t, rawFile(t, 1<<20, 512), 32, noRing, func(s *session) { s.setLimits(l) })
}

// What is beyond the limit waits, in the order of its arrival and reads and
// writes alike; flushes pass; without the limit it goes on at once.
func TestLimitDelays(t *testing.T) {
	for _, noRing := range []bool{false, true} {
		k := limited(t, blockdev.Limits{Bandwidth: 1}, noRing)
		first := k.send(w.OpRead, rw(0, 4096), nil)
		if h, _ := k.reply(); h.Unique != first || h.Error != 0 {
			t.Fatalf("reply %+v", h)
		}
		want := map[uint64]bool{}
		for i := range int64(10) {
			want[k.send(w.OpWrite, rw(i*4096, 4096), make([]byte, 4096))] = true
			want[k.send(w.OpRead, rw(i*4096, 4096), nil)] = true
		}
		want[k.send(w.OpFallocate, zeroing(0, 4096), nil)] = true
		flush := k.send(w.OpFsync, make([]byte, 16), nil)
		if h, _ := k.reply(); h.Unique != flush || h.Error != 0 {
			t.Fatalf("reply %+v, want of the flush", h)
		}
		k.s.setLimits(blockdev.Limits{IOPS: 1 << 30})
		k.waker.Wake()
		for range len(want) {
			h, _ := k.reply()
			if !want[h.Unique] || h.Error != 0 {
				t.Fatalf("reply %+v", h)
			}
			delete(want, h.Unique)
		}
		k.s.setLimits(blockdev.Limits{})
		k.send(w.OpRead, rw(0, 4096), nil)
		if h, _ := k.reply(); h.Error != 0 {
			t.Fatalf("reply %+v", h)
		}
	}
}

// A server that ends answers nothing of what a limit holds back.
func TestEndUnderALimit(t *testing.T) {
	k := limited(t, blockdev.Limits{Bandwidth: 1}, false)
	k.send(w.OpRead, rw(0, 4096), nil)
	k.reply()
	for i := range int64(10) {
		k.send(w.OpRead, rw(i*4096, 4096), nil)
	}
	if err := k.end(); !errors.Is(err, errStopped) {
		t.Fatal(err)
	}
	if n, err := unix.Read(k.fd, k.buf); n > 0 {
		t.Fatalf("%d bytes of reply, %v", n, err)
	}
}

// I-DEV-6 holds for what waits for its limit too.
func TestNoAllocationUnderALimit(t *testing.T) {
	k := limited(t, blockdev.Limits{IOPS: 20000}, false)
	read := rw(4096, 4096)
	once := func() {
		for range 8 {
			k.send(w.OpRead, read, nil)
		}
		for range 8 {
			k.reply()
		}
	}
	if a := testing.AllocsPerRun(300, once); a != 0 && !raceEnabled {
		t.Fatalf("%v allocations per 8 requests", a)
	}
}
