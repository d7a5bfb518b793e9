package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/test/plugin"
)

// writer is a pod: it writes chunk after chunk to a file, and syncs each.
// After turn of them it begins anew, with other content.
type writer struct {
	f      *os.File
	synced atomic.Int64 // chunks
	stop   chan struct{}
	ended  chan error
}

const chunk = 64 * kib

// turn is how many chunks a writer writes until it begins anew.
const turn = 128

// content of chunk n, which begins with n: no two are alike.
func content(n int64) []byte {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], uint64(n))
	p := make([]byte, chunk)
	_, _ = rand.NewChaCha8(seed).Read(p) // it never fails
	binary.LittleEndian.PutUint64(p, uint64(n))
	return p
}

// startWriter writes file data of a volume.
func startWriter(t *testing.T, v *plugin.Volume) *writer {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(v.Target, "data"), os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	w := &writer{f: f, stop: make(chan struct{}), ended: make(chan error, 1)}
	go func() { w.ended <- w.run() }()
	t.Cleanup(func() {
		_ = f.Close() // done already, unless the test has failed
		if t.Failed() {
			t.Logf("how the volume goes: %v", v.Down(context.Background()))
		}
	})
	return w
}

func (w *writer) run() error {
	for n := int64(0); ; n++ {
		select {
		case <-w.stop:
			return nil
		default:
		}
		if _, err := w.f.WriteAt(content(n), n%turn*chunk); err != nil {
			return fmt.Errorf("write chunk %d: %w", n, err)
		}
		if err := w.f.Sync(); err != nil {
			return fmt.Errorf("sync chunk %d: %w", n, err)
		}
		w.synced.Add(1)
	}
}

// goesOn waits until n more chunks are synced.
func (w *writer) goesOn(t *testing.T, n int64) {
	t.Helper()
	want := w.synced.Load() + n
	eventually(t, "the writer goes on", func() bool {
		select {
		case err := <-w.ended:
			t.Fatalf("I/O failed: %v", err)
		default:
		}
		return w.synced.Load() >= want
	})
}

// stands demands that nothing gets written.
func (w *writer) stands(t *testing.T) {
	t.Helper()
	before := w.synced.Load()
	later()
	if n := w.synced.Load() - before; n > 0 {
		t.Fatalf("%d chunks were synced to a share that is away", n)
	}
}

// end stops it; none of its writes may have failed.
func (w *writer) end(t *testing.T) {
	t.Helper()
	close(w.stop)
	if err := <-w.ended; err != nil {
		t.Fatalf("I/O failed: %v", err)
	}
	must(t, w.f.Close())
	t.Logf("%d chunks of 64 KiB written and synced, no I/O error", w.synced.Load())
}

// verify reads the file from the device, past the cache: the first n chunks
// were synced, and the next one may be there too, or a part of it.
func verify(t *testing.T, v *plugin.Volume, n int64) {
	t.Helper()
	for place, got := range places(t, v) {
		want := n - 1 - (n-1-int64(place))%turn // the last of the n that went there
		switch {
		case want < 0 || got == want || int64(place) == n%turn:
		default:
			t.Fatalf("WRONG BYTES: place %d has chunk %d and should have %d, of %d that were synced", place, got, want, n)
		}
	}
}

// verifySnapshot finds out at which chunk a snapshot was taken, which is not
// before the one of that number, and demands that all fits.
func verifySnapshot(t *testing.T, v *plugin.Volume, synced int64) {
	t.Helper()
	n := slices.Max(places(t, v))
	if n+1 < synced {
		t.Fatalf("LOST: %d chunks were synced before the snapshot, which has %d", synced, n+1)
	}
	verify(t, v, n)
}

// places lists which chunk is at each place of the file; -1 is none.
func places(t *testing.T, v *plugin.Volume) (chunks []int64) {
	t.Helper()
	f, err := os.Open(filepath.Join(v.Target, "data"))
	must(t, err, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
	defer f.Close()
	got := make([]byte, chunk)
	for range turn {
		if _, err := io.ReadFull(f, got); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				break
			}
			t.Fatal(err)
		}
		n := int64(binary.LittleEndian.Uint64(got))
		if !bytes.Equal(got, content(n)) {
			n = -1
		}
		chunks = append(chunks, n)
	}
	return chunks
}
