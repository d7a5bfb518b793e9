package devtest

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
)

// spy is an image that, at each flush, looks whether every write that had
// been answered when the flush was sent is there.
type spy struct {
	Image
	atFlush func() error
}

func (s *spy) Flush() error {
	return errors.Join(s.atFlush(), s.Image.Flush())
}

// pinSpy is a spy on an image that can be pinned.
type pinSpy struct {
	*spy
	blockdev.Pinner
}

func spyOn(im Image, atFlush func() error) Image {
	s := &spy{im, atFlush}
	if p, ok := im.(blockdev.Pinner); ok {
		return &pinSpy{s, p}
	}
	return s
}

// I-DEV-1
func testFlushCovers(t *testing.T, b Backend) {
	const (
		size    = 16 * mib
		writers = 8
		rounds  = 60
	)
	im := b.NewImage(t, size, 512)
	var mu sync.Mutex
	answered := map[int64]uint64{} // by offset: the newest answered write
	flushes := 0
	spied := spyOn(im, func() error {
		mu.Lock()
		want := make(map[int64]uint64, len(answered))
		for off, seq := range answered {
			want[off] = seq
		}
		flushes++
		mu.Unlock()
		return holds(im, want)
	})
	d := attach(t, b, spied)
	f := open(t, d, unix.O_DIRECT)
	var wg sync.WaitGroup
	for w := range int64(writers) {
		wg.Go(func() {
			p := aligned(4096)
			for round := range int64(rounds) {
				off := (w*rounds + round) * 4096
				stamp(p, off, 1)
				if _, err := f.WriteAt(p, off); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				answered[off] = 1
				mu.Unlock()
				if round%4 != 0 {
					continue
				}
				if err := f.sync(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	if flushes == 0 {
		t.Fatal("fsync of the device never reaches Image.Flush")
	}
}

// holds checks that the image has these blocks.
func holds(im Image, want map[int64]uint64) error {
	got, block := aligned(4096), make([]byte, 4096)
	for off, seq := range want {
		if n, err := im.ReadAt(got, off); n != len(got) {
			return err
		}
		if stamp(block, off, seq); string(got) != string(block) {
			return fmt.Errorf("block at %#x was answered before the flush and is not there", off)
		}
	}
	return nil
}

// testErrors: an image's error reaches the caller, and the device goes on.
func testErrors(t *testing.T, b Backend) {
	im := NewMemImage(16*mib, 512)
	d := attach(t, b, im)
	f := open(t, d, unix.O_DIRECT)
	p := aligned(4096)
	for _, test := range []struct {
		kind string
		fail error
		want error
		do   func() error
	}{
		{"write", syscall.EIO, syscall.EIO, func() error { _, err := f.WriteAt(p, 8192); return err }},
		{"write", fmt.Errorf("allocate: %w", syscall.ENOSPC), syscall.ENOSPC, func() error { _, err := f.WriteAt(p, 8192); return err }},
		{"write", errors.New("no errno"), syscall.EIO, func() error { _, err := f.WriteAt(p, 8192); return err }},
		{"write", syscall.ENOSYS, syscall.EIO, func() error { _, err := f.WriteAt(p, 8192); return err }},
		{"read", syscall.EIO, syscall.EIO, func() error { _, err := f.ReadAt(p, 8192); return err }},
		{"discard", syscall.EIO, syscall.EIO, func() error { return f.zeroRange(blkDiscard, 0, 8192) }},
	} {
		im.Hook(func(op Op) error {
			if op.Kind == test.kind {
				return test.fail
			}
			return nil
		})
		if err := test.do(); !errors.Is(err, test.want) {
			t.Errorf("%s fails with %v: got %v, want %v", test.kind, test.fail, err, test.want)
		}
		im.Hook(nil)
		if err := test.do(); err != nil {
			t.Errorf("%s after an error: %v", test.kind, err)
		}
	}
}

// testFlushError: a failed flush is reported, each time, and never makes the
// kernel stop sending them.
func testFlushError(t *testing.T, b Backend) {
	im := NewMemImage(16*mib, 512)
	d := attach(t, b, im)
	f := open(t, d, unix.O_DIRECT)
	for _, fail := range []error{syscall.EIO, syscall.ENOSYS, syscall.EOPNOTSUPP, syscall.ENOSPC} {
		im.Hook(func(op Op) error {
			if op.Kind == "flush" {
				return fail
			}
			return nil
		})
		if _, err := f.WriteAt(aligned(4096), 0); err != nil {
			t.Fatal(err)
		}
		if err := f.sync(); err == nil {
			t.Errorf("a flush that failed with %v succeeds", fail)
		}
		im.Hook(nil)
		before := im.Flushed()
		if err := f.sync(); err != nil {
			t.Errorf("flush after %v: %v", fail, err)
		}
		if im.Flushed() == before {
			t.Errorf("after a flush failed with %v the next one does not reach the image", fail)
		}
	}
}

// testSlowWrite: writes that wait, as on a full share, hold up neither reads
// nor other requests, as long as there are slots.
func testSlowWrite(t *testing.T, b Backend) {
	im := NewMemImage(16*mib, 512)
	d := attach(t, b, im)
	f := open(t, d, unix.O_DIRECT)
	gate := make(chan struct{})
	im.Hook(func(op Op) error {
		if op.Kind == "write" {
			<-gate
		}
		return nil
	})
	var wg sync.WaitGroup
	for i := range int64(32) {
		wg.Go(func() {
			if _, err := f.WriteAt(aligned(4096), i*4096); err != nil {
				t.Error(err)
			}
		})
	}
	done := make(chan error, 1)
	go func() {
		for i := range int64(16) {
			if _, err := f.ReadAt(aligned(4096), 8*mib+i*4096); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("reads wait for writes that wait")
	}
	close(gate)
	wg.Wait()
}
