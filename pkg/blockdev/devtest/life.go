package devtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
)

func testReadOnly(t *testing.T, b Backend) {
	im := NewMemImage(16*mib, 512)
	want := bytes.Repeat([]byte("read only "), 512)[:4096]
	if _, err := im.WriteAt(want, 4096); err != nil {
		t.Fatal(err)
	}
	im.SetReadOnly()
	d := attach(t, b, im)
	f, err := openFile(t, d.Path(), os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	if ro := blockIoctl(t, f, unix.BLKROGET) & 0xffffffff; ro != 1 {
		t.Errorf("BLKROGET says %d", ro)
	}
	got := make([]byte, 4096)
	if _, err := f.ReadAt(got, 4096); err != nil {
		t.Fatal(err)
	}
	differ(t, "read", got, want, 4096)
	w, err := openFile(t, d.Path(), os.O_RDWR|unix.O_DIRECT)
	if err != nil {
		return // refused already
	}
	if _, err := w.WriteAt(aligned(4096), 0); err == nil {
		t.Error("a read-only device was written")
	}
	if err := w.zeroRange(blkDiscard, 0, 4096); err == nil {
		t.Error("a read-only device was discarded")
	}
}

func testDetachTwice(t *testing.T, b Backend) {
	d := attach(t, b, b.NewImage(t, 8*mib, 512))
	select {
	case <-d.Done():
		t.Fatal("Done is closed while the device is served")
	default:
	}
	for range 2 {
		if err := d.Detach(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func testDetachBusyOpen(t *testing.T, b Backend) {
	d := attach(t, b, b.NewImage(t, 8*mib, 512))
	for _, flags := range []int{0, unix.O_EXCL} {
		f := open(t, d, flags)
		if err := d.Detach(t.Context()); !errors.Is(err, blockdev.ErrBusy) {
			t.Errorf("Detach of an open device: %v", err)
		}
		p := bytes.Repeat([]byte{byte(flags) + 1}, 4096)
		if _, err := f.WriteAt(p, 4096); err != nil {
			t.Errorf("the device does not work after a refused Detach: %v", err)
		}
		if err := errors.Join(f.sync(), f.Close()); err != nil {
			t.Error(err)
		}
		whole(t, d, 8*mib)
	}
}

// testDetachInFlight: what was written and neither synced nor waited for is in
// the image when Detach returns (I-DEV-2).
func testDetachInFlight(t *testing.T, b Backend) {
	im := NewMemImage(16*mib, 512)
	d := attach(t, b, im)
	var busy sync.WaitGroup
	im.Hook(func(op Op) error {
		busy.Add(1)
		defer busy.Done()
		if op.Kind == "write" {
			time.Sleep(10 * time.Millisecond)
		}
		return nil
	})
	data := make([]byte, 4*mib)
	fill(random(t), data)
	f := open(t, d, 0)
	if _, err := f.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	closed := make(chan error, 1)
	go func() { closed <- f.Close() }()
	for {
		err := d.Detach(t.Context())
		if err == nil {
			break
		}
		if !errors.Is(err, blockdev.ErrBusy) {
			t.Fatal(err)
		}
	}
	im.Hook(func(op Op) error {
		t.Errorf("%+v after Detach has returned", op)
		return nil
	})
	busy.Wait()
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	im.Hook(nil)
	got := make([]byte, len(data))
	if _, err := im.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	differ(t, "image after Detach", got, data, 0)
}

func testTwoDevices(t *testing.T, b Backend) {
	a := b.New(t)
	var files []*file
	for range 2 {
		d := attachWith(t, b, a, newID(t), b.NewImage(t, 8*mib, 512))
		files = append(files, open(t, d, unix.O_DIRECT))
	}
	for round := range 20 {
		for i, f := range files {
			p := aligned(4096)
			stamp(p, int64(i), uint64(round)+1)
			if _, err := f.WriteAt(p, 4096); err != nil {
				t.Fatal(err)
			}
		}
		for i, f := range files {
			got, want := aligned(4096), make([]byte, 4096)
			if _, err := f.ReadAt(got, 4096); err != nil {
				t.Fatal(err)
			}
			stamp(want, int64(i), uint64(round)+1)
			differ(t, fmt.Sprintf("device %d", i), got, want, 4096)
		}
	}
}

// I-DEV-3
func testSameVolumeTwice(t *testing.T, b Backend) {
	a := b.New(t)
	id := newID(t)
	d := attachWith(t, b, a, id, b.NewImage(t, 8*mib, 512))
	for _, second := range []blockdev.Attacher{a, b.New(t)} {
		if _, err := second.Attach(t.Context(), blockdev.Config{ID: id, Image: NewMemImage(8*mib, 512)}); !errors.Is(err, blockdev.ErrBusy) {
			t.Errorf("the second Attach of a volume: %v", err)
		}
		if err := second.Teardown(t.Context(), id); !errors.Is(err, blockdev.ErrBusy) {
			t.Errorf("Teardown of a device that is served: %v", err)
		}
	}
	whole(t, d, 8*mib)
}

func testInvalidConfig(t *testing.T, b Backend) {
	a := b.New(t)
	for name, c := range map[string]blockdev.Config{
		"no id":      {Image: NewMemImage(mib, 512)},
		"no size":    {ID: newID(t), Image: NewMemImage(0, 512)},
		"odd size":   {ID: newID(t), Image: NewMemImage(mib+512, 4096)},
		"odd sector": {ID: newID(t), Image: NewMemImage(mib, 1000)},
	} {
		if d, err := a.Attach(t.Context(), c); err == nil {
			t.Errorf("%s: attached", name)
			detach(t, d)
		}
	}
}

// testCancelledAttach: whenever the context ends, there is a device or there
// is nothing (I-DEV-4).
func testCancelledAttach(t *testing.T, b Backend) {
	a := b.New(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	id := newID(t)
	if _, err := a.Attach(ctx, blockdev.Config{ID: id, Image: NewMemImage(mib, 512)}); !errors.Is(err, context.Canceled) {
		t.Fatalf("Attach under a cancelled context: %v", err)
	}
	noLeftovers(t, b, id)
	var cut, made int
	for i := range steps(30) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*500*time.Microsecond)
		d, err := a.Attach(ctx, blockdev.Config{ID: id, Image: NewMemImage(mib, 512)})
		switch {
		case err == nil:
			made++
			detach(t, d)
		case errors.Is(err, context.DeadlineExceeded):
			cut++
		default:
			t.Errorf("a cut attach: %v", err)
		}
		cancel()
		noLeftovers(t, b, id)
	}
	t.Logf("%d cut, %d made", cut, made)
}

// testLeavesNothing: no descriptor, goroutine or thread's memory grows.
func testLeavesNothing(t *testing.T, b Backend) {
	a := b.New(t)
	cycle := func() {
		d, err := a.Attach(t.Context(), blockdev.Config{ID: newID(t), Image: NewMemImage(mib, 512)})
		if err != nil {
			t.Fatal(err)
		}
		detach(t, d)
	}
	cycle() // what is made once and kept
	ignore := goleak.IgnoreCurrent()
	before := descriptors(t)
	for range 5 {
		cycle()
	}
	runtime.GC() // descriptors that only a finalizer would close
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
	goleak.VerifyNone(t, ignore)
}

func descriptors(t *testing.T) int {
	t.Helper()
	ents, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(ents)
}

func testTeardown(t *testing.T, b Backend) {
	if err := b.New(t).Teardown(t.Context(), newID(t)); err != nil {
		t.Fatal(err)
	}
}
