package fuseloop

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	w "github.com/csi-vhdx/csi-driver-vhdx/internal/fusewire"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev/devtest"
)

// Every request is counted once, as what it was, by the time it is answered,
// whichever way it took.
func TestRequestsAreCounted(t *testing.T) {
	for _, test := range []struct {
		name   string
		pin    bool
		noRing bool
	}{{"ring", true, false}, {"slow", false, false}, {"poll", false, true}} {
		t.Run(test.name, func(t *testing.T) {
			var im blockdev.Image = devtest.NewMemImage(1<<20, 512)
			if test.pin {
				im = rawFile(t, 1<<20, 512)
			}
			k := newKernel(t, im, 8, test.noRing)
			falloc := func(mode uint32) []byte {
				b := make([]byte, w.SizeFallocateIn)
				w.FallocateIn{Offset: 0, Length: 8192, Mode: mode}.Put(b)
				return b
			}
			for range 3 {
				k.send(w.OpRead, rw(4096, 4096), nil)
			}
			k.send(w.OpRead, rw(1<<20-4096, 8192), nil) // half of it is beyond the end
			for range 2 {
				k.send(w.OpWrite, rw(8192, 512), make([]byte, 512))
			}
			k.send(w.OpFallocate, falloc(w.FallocPunchHole|w.FallocKeepSize), nil)
			k.send(w.OpFallocate, falloc(w.FallocZeroRange), nil)
			k.send(w.OpGetattr, make([]byte, 16), nil) // nobody's business
			for range 9 {
				k.reply()
			}
			k.send(w.OpWrite, rw(1<<20, 4096), make([]byte, 4096)) // beyond the end: refused
			k.send(w.OpFsync, make([]byte, 16), nil)
			k.reply()
			k.reply()
			got := k.s.count.Load()
			var flushes uint64
			for _, n := range got.Flushes {
				flushes += n
			}
			if flushes != 1 || got.Flushed <= 0 {
				t.Errorf("%d flushes of %v", flushes, got.Flushed)
			}
			got.Flushes, got.Flushed = blockdev.Counts{}.Flushes, 0
			want := blockdev.Counts{
				Done:   [...]uint64{blockdev.Read: 4, blockdev.Write: 2, blockdev.Zero: 1, blockdev.Discard: 1, blockdev.Flush: 1},
				Failed: [...]uint64{blockdev.Write: 1, blockdev.Flush: 0},
				Bytes:  [...]uint64{blockdev.Read: 4 * 4096, blockdev.Write: 1024, blockdev.Zero: 8192, blockdev.Discard: 8192, blockdev.Flush: 0},
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
		})
	}
}

// A flush that fails is counted as such, and its time all the same.
func TestFailedFlushIsCounted(t *testing.T) {
	im := devtest.NewMemImage(1<<20, 512)
	im.Hook(func(op devtest.Op) error {
		if op.Kind == "flush" {
			return errors.Join(unix.EIO)
		}
		return nil
	})
	k := newKernel(t, im, 8, false)
	k.send(w.OpFsync, make([]byte, 16), nil)
	if h, _ := k.reply(); h.Error != -int32(unix.EIO) {
		t.Fatalf("%+v", h)
	}
	got := k.s.count.Load()
	if got.Failed[blockdev.Flush] != 1 || got.Done[blockdev.Flush] != 0 || got.Flushed <= 0 {
		t.Errorf("%+v", got)
	}
}

// BenchmarkCount is what counting adds to a request.
func BenchmarkCount(b *testing.B) {
	e := &engine{s: &session{count: new(blockdev.Counters)}}
	r := &request{op: w.OpWrite, n: 4096}
	for b.Loop() {
		e.countDone(r)
	}
	if a := testing.AllocsPerRun(100, func() { e.countDone(r) }); a != 0 {
		b.Fatalf("%v allocations", a)
	}
	r = &request{op: w.OpFsync, began: time.Now()}
	if a := testing.AllocsPerRun(100, func() { e.countDone(r) }); a != 0 {
		b.Fatalf("%v allocations", a)
	}
}
