package fuseloop

import (
	"bytes"
	"errors"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	w "github.com/csi-vhdx/csi-driver-vhdx/internal/fusewire"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev/devtest"
)

// large requests need a big buffer.
const large = 4 * smallIO

// fullImage has no space for changes while full is set.
type fullImage struct {
	*devtest.MemImage
	full     atomic.Bool
	errno    unix.Errno
	poisoned atomic.Bool
	tried    atomic.Int64 // changes
	others   atomic.Int64 // of those, not at offset 0
}

func newFullImage(errno unix.Errno) *fullImage {
	im := &fullImage{MemImage: devtest.NewMemImage(64<<20, 512), errno: errno}
	im.Hook(func(op devtest.Op) error {
		if op.Kind != "read" && op.Kind != "flush" {
			if op.Off != 0 {
				im.others.Add(1)
			}
			im.tried.Add(1)
			if im.full.Load() {
				return im.errno
			}
		}
		return nil
	})
	return im
}

func (im *fullImage) Full() bool { return im.full.Load() && im.errno == unix.ENOSPC }

func (im *fullImage) Poisoned() error {
	if im.poisoned.Load() {
		return errors.New("poisoned")
	}
	return nil
}

// pausing is a kernel before an engine that pauses.
func pausing(t *testing.T, im *fullImage, noRing bool, limit time.Duration) *kernel {
	t.Helper()
	k := newKernelWith(t, im, 128, noRing, func(s *session) { s.setPause(true, limit) })
	return k
}

// awaitPaused waits until so many requests wait for space.
func (k *kernel) awaitPaused(n int) {
	k.t.Helper()
	for range 10000 {
		if k.hold.shown.waiting.Load() == int32(n) {
			return
		}
		time.Sleep(time.Millisecond)
	}
	k.t.Fatalf("%d requests wait for space, want %d", k.hold.shown.waiting.Load(), n)
}

func zeroing(off, n int64) []byte {
	b := make([]byte, w.SizeFallocateIn)
	w.FallocateIn{Offset: uint64(off), Length: uint64(n), Mode: w.FallocZeroRange | w.FallocKeepSize}.Put(b)
	return b
}

// Changes wait for space, up to as many as there are places for requests; reads
// and flushes do not, though all big buffers would be taken.
func TestChangesWaitForSpace(t *testing.T) {
	for _, errno := range []unix.Errno{unix.ENOSPC, unix.EDQUOT} {
		for _, noRing := range []bool{false, true} {
			im := newFullImage(errno)
			k := pausing(t, im, noRing, 0)
			im.full.Store(true)
			const writes = 100
			data := make([]byte, large)
			waits := map[uint64]bool{}
			for i := range int64(writes) {
				for j := range data {
					data[j] = byte(i + 1)
				}
				waits[k.send(w.OpWrite, rw(i*large, large), data)] = true
			}
			waits[k.send(w.OpFallocate, zeroing(writes*large, large), nil)] = true
			k.awaitPaused(writes + 1)
			for range 3 {
				for _, ask := range []func() uint64{
					func() uint64 { return k.send(w.OpRead, rw(0, large), nil) },
					func() uint64 { return k.send(w.OpFsync, make([]byte, 16), nil) },
				} {
					id := ask()
					if h, _ := k.reply(); h.Unique != id || h.Error != 0 {
						t.Fatalf("beside a pause: reply %+v", h)
					}
				}
			}
			if at := k.hold.shown.since.Load(); at == 0 || unix.Errno(k.hold.shown.errno.Load()) != errno {
				t.Fatalf("the pause shows since %d, errno %d", at, k.hold.shown.errno.Load())
			}
			im.full.Store(false)
			for range writes + 1 {
				h, _ := k.reply()
				if !waits[h.Unique] || h.Error != 0 {
					t.Fatalf("reply %+v", h)
				}
				delete(waits, h.Unique)
			}
			got := make([]byte, large)
			for i := range int64(writes) {
				if _, err := im.ReadAt(got, i*large); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{byte(i + 1)}, large)) {
					t.Fatalf("write %d is not what was sent: %v", i, err)
				}
			}
			k.awaitPaused(0)
			if err := k.end(); !errors.Is(err, errStopped) {
				t.Fatal(err)
			}
			if k.hold.shown.since.Load() != 0 || k.s.spills.used.Load() != 0 {
				t.Fatalf("after the pause it shows since %d, and has %d bytes of memory", k.hold.shown.since.Load(), k.s.spills.used.Load())
			}
		}
	}
}

// A pause costs one attempt now and then, of the oldest change alone.
func TestOnlyTheOldestIsTried(t *testing.T) {
	im := newFullImage(unix.EDQUOT) // which a probe does not see
	k := pausing(t, im, false, 0)
	im.full.Store(true)
	for i := range int64(50) {
		k.send(w.OpWrite, rw(i*4096, 4096), make([]byte, 4096))
	}
	k.awaitPaused(50)
	before, others := im.tried.Load(), im.others.Load()
	for im.tried.Load() < before+3 {
		time.Sleep(time.Millisecond)
	}
	if n := im.others.Load() - others; n > 0 {
		t.Fatalf("%d attempts of changes that are not the oldest", n)
	}
}

// A change that has waited for as long as it may fails.
func TestPauseLimit(t *testing.T) {
	im := newFullImage(unix.ENOSPC)
	k := pausing(t, im, false, time.Millisecond)
	im.full.Store(true)
	for i := range int64(10) {
		k.send(w.OpWrite, rw(i*4096, 4096), make([]byte, 4096))
	}
	for range 10 {
		if h, _ := k.reply(); h.Error != -int32(unix.ENOSPC) {
			t.Fatalf("reply %+v", h)
		}
	}
	im.full.Store(false)
	k.send(w.OpWrite, rw(0, 4096), make([]byte, 4096))
	if h, _ := k.reply(); h.Error != 0 {
		t.Fatalf("after the pause: reply %+v", h)
	}
}

// Told not to pause any more, the device fails what waits.
func TestPauseIsSwitchedOff(t *testing.T) {
	im := newFullImage(unix.ENOSPC)
	k := pausing(t, im, false, 0)
	im.full.Store(true)
	for i := range int64(10) {
		k.send(w.OpWrite, rw(i*4096, 4096), make([]byte, 4096))
	}
	k.awaitPaused(10)
	k.s.setPause(false, 0)
	for range 10 {
		if h, _ := k.reply(); h.Error != -int32(unix.ENOSPC) {
			t.Fatalf("reply %+v", h)
		}
	}
	k.awaitPaused(0)
}

// An image that takes no writes any more, for want of space, ends the pause: no
// space would help.
func TestPoisonEndsThePause(t *testing.T) {
	im := newFullImage(unix.EDQUOT)
	k := pausing(t, im, false, 0)
	im.full.Store(true)
	for i := range int64(5) {
		k.send(w.OpWrite, rw(i*4096, 4096), make([]byte, 4096))
	}
	k.awaitPaused(5)
	im.poisoned.Store(true)
	for range 5 {
		if h, _ := k.reply(); h.Error != -int32(unix.EIO) {
			t.Fatalf("reply %+v", h)
		}
	}
}

// A server that ends in a pause answers nothing of it.
func TestEndInAPause(t *testing.T) {
	for _, noRing := range []bool{false, true} {
		im := newFullImage(unix.ENOSPC)
		k := pausing(t, im, noRing, 0)
		im.full.Store(true)
		for i := range int64(60) {
			k.send(w.OpWrite, rw(i*large, large), make([]byte, large))
		}
		k.awaitPaused(60)
		if err := k.end(); !errors.Is(err, errStopped) {
			t.Fatal(err)
		}
		if n, err := unix.Read(k.fd, k.buf); n > 0 {
			t.Fatalf("%d bytes of reply, %v", n, err)
		}
		if n := k.s.spills.used.Load(); n != 0 {
			t.Fatalf("%d bytes of memory are left", n)
		}
	}
}

// I-FL-3 in a pause: later changes of the same unit wait behind a narrow one.
func TestOrderInAPause(t *testing.T) {
	im := rawFile(t, 64<<10, 4096)
	var full atomic.Bool
	full.Store(true)
	k := newKernelWith(t, &narrowFull{im, &full}, 16, false, func(s *session) { s.setPause(true, 0) })
	narrow := k.send(w.OpWrite, rw(512, 512), bytes.Repeat([]byte{1}, 512))
	k.awaitPaused(1)
	whole := k.send(w.OpWrite, rw(0, 4096), bytes.Repeat([]byte{2}, 4096))
	other := k.send(w.OpWrite, rw(8192, 4096), bytes.Repeat([]byte{3}, 4096))
	if h, _ := k.reply(); h.Unique != other || h.Error != 0 {
		t.Fatalf("reply %+v, want of %d", h, other)
	}
	full.Store(false)
	for _, id := range []uint64{narrow, whole} {
		if h, _ := k.reply(); h.Unique != id || h.Error != 0 {
			t.Fatalf("reply %+v, want of %d", h, id)
		}
	}
	got := make([]byte, 4096)
	if _, err := im.ReadAt(got, 0); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{2}, 4096)) {
		t.Fatalf("the later write is not what is there: %v", err)
	}
}

// narrowFull has no space for what the ring does not do.
type narrowFull struct {
	*devtest.FileImage
	full *atomic.Bool
}

func (im *narrowFull) WriteAt(p []byte, off int64) (int, error) {
	if im.full.Load() {
		return 0, &os.PathError{Op: "write", Path: "image", Err: unix.ENOSPC}
	}
	return im.FileImage.WriteAt(p, off)
}
