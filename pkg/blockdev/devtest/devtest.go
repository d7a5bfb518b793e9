package devtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
)

// Image is an image that a test can make larger.
type Image interface {
	blockdev.Image
	Grow(size int64) error
}

// Backend is what is tested.
type Backend struct {
	New func(t *testing.T) blockdev.Attacher
	// NewImage makes an image that reads zero, for one test.
	NewImage func(t *testing.T, size int64, sector int) Image
	// Leftovers names what is left in the kernel of a volume's device.
	Leftovers func(t *testing.T, id string) []string
}

// Run runs the whole suite.
func Run(t *testing.T, b Backend) {
	if os.Geteuid() != 0 {
		t.Skip("block devices need root")
	}
	if !wired {
		t.Fatal("TestMain must begin with devtest.RunIfGuest")
	}
	for _, test := range []struct {
		name string
		run  func(*testing.T, Backend)
	}{
		{"Geometry", testGeometry},
		{"DirectIO", testDirectIO},
		{"Buffered", testBuffered},
		{"Narrow", testNarrow},
		{"Concurrent", testConcurrent},
		{"FlushCovers", testFlushCovers},
		{"Zeroing", testZeroing},
		{"ZeroingCalls", testZeroingCalls},
		{"Errors", testErrors},
		{"FlushError", testFlushError},
		{"SlowWriteHoldsUpNothing", testSlowWrite},
		{"Resize", testResize},
		{"ResizeUnderLoad", testResizeUnderLoad},
		{"ReadOnly", testReadOnly},
		{"DetachTwice", testDetachTwice},
		{"DetachBusyOpen", testDetachBusyOpen},
		{"DetachBusyMounted", testDetachBusyMounted},
		{"DetachInFlight", testDetachInFlight},
		{"TwoDevices", testTwoDevices},
		{"SameVolumeTwice", testSameVolumeTwice},
		{"InvalidConfig", testInvalidConfig},
		{"CancelledAttach", testCancelledAttach},
		{"AttachDetachLeavesNothing", testLeavesNothing},
		{"TeardownOfNothing", testTeardown},
		{"Filesystems", testFilesystems},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, b) })
	}
}

const mib = int64(1) << 20

// steps is how many of n random steps to take.
func steps(n int) int {
	if testing.Short() {
		return n / 4
	}
	return n
}

var ids atomic.Int64

// newID makes a volume id that no other process of this machine uses.
func newID(t *testing.T) string {
	return fmt.Sprintf("devtest-%d-%d-%s", os.Getpid(), ids.Add(1), t.Name())
}

// attach serves im until the end of the test.
func attach(t *testing.T, b Backend, im blockdev.Image) blockdev.Device {
	t.Helper()
	return attachWith(t, b, b.New(t), newID(t), im)
}

func attachWith(t *testing.T, b Backend, a blockdev.Attacher, id string, im blockdev.Image) blockdev.Device {
	t.Helper()
	d, err := a.Attach(t.Context(), blockdev.Config{ID: id, Image: im})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		detach(t, d)
		noLeftovers(t, b, id)
	})
	return d
}

// detach removes a device at the end of a test. It must not stay, whatever
// the test did.
func detach(t *testing.T, d blockdev.Device) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		err := d.Detach(ctx)
		if err == nil {
			break
		}
		if !errors.Is(err, blockdev.ErrBusy) || ctx.Err() != nil {
			t.Error(err)
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	select {
	case <-d.Done():
	default:
		t.Error("Detach has returned and Done is open (I-DEV-2)")
	}
	if err := d.Err(); err != nil {
		t.Errorf("Err after Detach: %v", err)
	}
}

func noLeftovers(t *testing.T, b Backend, id string) {
	t.Helper()
	if b.Leftovers == nil {
		return
	}
	if left := b.Leftovers(t, id); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// open opens the device; the test's end closes it before it is detached.
func open(t *testing.T, d blockdev.Device, flags int) *file {
	t.Helper()
	f, err := openFile(t, d.Path(), os.O_RDWR|flags)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// whole reads the whole device through the page cache.
func whole(t *testing.T, d blockdev.Device, size int64) []byte {
	t.Helper()
	f, err := openFile(t, d.Path(), os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, size)
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return b
}

// blockIoctl gets an integer of a block device.
func blockIoctl(t *testing.T, f *file, req uint) int64 {
	t.Helper()
	a, err := f.ask(Ask{Op: "get", Req: req})
	if err != nil {
		t.Fatalf("ioctl %#x: %v", req, err)
	}
	return a.N
}

const (
	blkDiscard = 0x1277
	blkZeroOut = 0x127f
)

// random is repeatable, and different for each test.
func random(t *testing.T) *rand.Rand {
	var seed [32]byte
	copy(seed[:], t.Name())
	return rand.New(rand.NewChaCha8(seed))
}

func fill(r *rand.Rand, p []byte) {
	for len(p) >= 8 {
		binary.NativeEndian.PutUint64(p, r.Uint64())
		p = p[8:]
	}
	for i := range p {
		p[i] = byte(r.Uint32())
	}
}

// differ says where two stretches of bytes first differ.
func differ(t *testing.T, what string, got, want []byte, off int64) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	for i := range want {
		if i >= len(got) || got[i] != want[i] {
			t.Fatalf("%s at %#x of %#x+%#x: first difference at %#x", what, off+int64(i), off, len(want), off+int64(i))
		}
	}
	t.Fatalf("%s: %d bytes, want %d", what, len(got), len(want))
}

func testGeometry(t *testing.T, b Backend) {
	for _, sector := range []int{512, 4096} {
		t.Run(fmt.Sprint(sector), func(t *testing.T) {
			size := 10*mib + int64(sector)
			d := attach(t, b, b.NewImage(t, size, sector))
			f := open(t, d, unix.O_DIRECT)
			if got := blockIoctl(t, f, unix.BLKGETSIZE64); got != size {
				t.Errorf("size %d, want %d", got, size)
			}
			if got := blockIoctl(t, f, unix.BLKSSZGET) & 0xffffffff; got != int64(sector) {
				t.Errorf("logical block size %d, want %d", got, sector)
			}
			last := aligned(int64(sector))
			fill(random(t), last)
			if _, err := f.WriteAt(last, size-int64(sector)); err != nil {
				t.Errorf("write the last sector: %v", err)
			}
			got := aligned(int64(sector))
			if _, err := f.ReadAt(got, size-int64(sector)); err != nil {
				t.Errorf("read the last sector: %v", err)
			}
			differ(t, "last sector", got, last, size-int64(sector))
			if n, err := f.WriteAt(last, size); err == nil || n != 0 {
				t.Errorf("a write beyond the end: %d, %v", n, err)
			}
		})
	}
}
