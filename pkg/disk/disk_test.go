package disk_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"testing/iotest"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/disk"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

const mib = 1 << 20

// seeds is fewer with -short, which the race detector's run is.
func seeds(n uint64) uint64 {
	if testing.Short() {
		return n / 4
	}
	return n
}

// content is a disk of size bytes with holes, zeros that are no holes, and
// data that begins and ends anywhere.
func content(r *rand.Rand, size int) []byte {
	p := make([]byte, size)
	for range 12 {
		off := r.IntN(size)
		n := min(1+r.IntN(3*mib>>r.IntN(16)), size-off)
		switch r.IntN(4) {
		case 0:
			clear(p[off : off+n])
		default:
			for i := range n {
				p[off+i] = byte(r.Uint32())
			}
		}
	}
	return p
}

// sparse writes a raw file with holes where 64 KiB or more are zero.
func sparse(t *testing.T, p []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(int64(len(p))); err != nil {
		t.Fatal(err)
	}
	for off := 0; off < len(p); off += 64 << 10 {
		part := p[off:min(off+64<<10, len(p))]
		if bytes.Count(part, []byte{0}) == len(part) {
			continue
		}
		if _, err := f.WriteAt(part, int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func openFile(t *testing.T, path string) *disk.File {
	t.Helper()
	f, err := disk.OpenFile(path, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func readAll(t *testing.T, r io.ReaderAt, size int64) []byte {
	t.Helper()
	p, err := io.ReadAll(io.NewSectionReader(r, 0, size))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// What is copied, to whatever and with whatever options, is what was there,
// and Compare says so.
func TestCopy(t *testing.T) {
	for seed := range seeds(12) {
		r := rand.New(rand.NewPCG(seed, 1))
		size := (1 + r.IntN(16*mib/512)) * 512
		want := content(r, size)
		src := openFile(t, sparse(t, want))
		o := disk.Options{Blank: true, Workers: 1 + r.IntN(6), Unit: 4096 << r.IntN(9)}

		path := filepath.Join(t.TempDir(), "disk.vhdx")
		im, _, err := disk.CreateImage(path, vhdx.CreateOptions{Size: int64(size), BlockSize: mib, Fixed: r.IntN(2) == 0})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := disk.Copy(t.Context(), im, src, o); err != nil {
			t.Fatal(err)
		}
		if err := im.Publish(false); err != nil {
			t.Fatal(err)
		}
		back, err := vhdx.OpenPath(path, vhdx.OpenOptions{ReadOnly: true, RefuseDirty: true})
		if err != nil {
			t.Fatal(err)
		}
		defer back.Close()
		if got := readAll(t, back, back.Size()); !bytes.Equal(got, want) {
			t.Fatalf("seed %d: raw to VHDX differs", seed)
		}

		raw, err := disk.CreateFile(filepath.Join(t.TempDir(), "raw"), int64(size))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := disk.Copy(t.Context(), raw, back, o); err != nil {
			t.Fatal(err)
		}
		if off, err := disk.Compare(t.Context(), raw, back, disk.CompareOptions{}); off != -1 || err != nil {
			t.Fatalf("seed %d: compare: %#x, %v", seed, off, err)
		}
		if got := readAll(t, raw, int64(size)); !bytes.Equal(got, want) {
			t.Fatalf("seed %d: VHDX to raw differs", seed)
		}
		if err := raw.Publish(false); err != nil {
			t.Fatal(err)
		}

		var pipe bytes.Buffer
		if _, err := disk.Copy(t.Context(), disk.NewStream(&pipe, int64(size)), back, disk.Options{Whole: true, Workers: 5}); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(pipe.Bytes(), want) {
			t.Fatalf("seed %d: VHDX to a pipe differs", seed)
		}
	}
}

// A stream of any length ends in a target of that length, whole sectors of an
// image.
func TestCopyStream(t *testing.T) {
	for seed := range seeds(6) {
		r := rand.New(rand.NewPCG(seed, 2))
		want := content(r, 1+r.IntN(24*mib))
		in := func() io.Reader { return iotest.HalfReader(bytes.NewReader(want)) }
		raw, err := disk.CreateFile(filepath.Join(t.TempDir(), "raw"), 0)
		if err != nil {
			t.Fatal(err)
		}
		s, err := disk.CopyStream(t.Context(), raw, in(), 1, disk.Options{Blank: true})
		if err != nil || s.Size != int64(len(want)) || s.Size != raw.Size() {
			t.Fatalf("%+v, %v", s, err)
		}
		if got := readAll(t, raw, raw.Size()); !bytes.Equal(got, want) {
			t.Fatalf("seed %d: raw differs", seed)
		}
		if err := raw.Publish(false); err != nil {
			t.Fatal(err)
		}
		im, _, err := disk.CreateImage(filepath.Join(t.TempDir(), "image"), vhdx.CreateOptions{Size: 4 * mib, BlockSize: mib})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := disk.CopyStream(t.Context(), im, in(), 512, disk.Options{Blank: true}); err != nil {
			t.Fatal(err)
		}
		want = append(want, make([]byte, -len(want)&511)...)
		if got := readAll(t, im, im.Size()); !bytes.Equal(got, want) {
			t.Fatalf("seed %d: image differs", seed)
		}
		if err := im.Publish(false); err != nil {
			t.Fatal(err)
		}
	}
	small, err := disk.CreateFile(filepath.Join(t.TempDir(), "raw"), mib)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = small.Abort() }()
	if _, err := disk.CopyStream(t.Context(), struct{ disk.Target }{small}, bytes.NewReader(make([]byte, 2*mib)), 1, disk.Options{}); err == nil {
		t.Error("a stream that is longer than its target was copied")
	}
}

// I-CPY-3: nothing of what a target held shows through.
func TestCopyOntoOldData(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	const size = 9*mib + 512
	want := content(r, size)
	src := openFile(t, sparse(t, want))
	old := bytes.Repeat([]byte("old "), (size+mib)/4)

	raw := filepath.Join(t.TempDir(), "raw")
	if err := os.WriteFile(raw, old, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := disk.OpenFile(raw, true)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	im, _, err := disk.CreateImage(filepath.Join(t.TempDir(), "image"), vhdx.CreateOptions{Size: int64(len(old)), BlockSize: mib})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = im.Abort() }()
	if _, err := im.WriteAt(old, 0); err != nil {
		t.Fatal(err)
	}
	for _, target := range []interface {
		disk.Target
		io.ReaderAt
	}{file, im} {
		if _, err := disk.Copy(t.Context(), target, src, disk.Options{}); err != nil {
			t.Fatal(err)
		}
		got := readAll(t, target, int64(len(old)))
		if !bytes.Equal(got[:size], want) {
			t.Errorf("%T: differs", target)
		}
		if !bytes.Equal(got[size:], old[size:]) {
			t.Errorf("%T: what is beyond the source has changed", target)
		}
	}
	small, _, err := disk.CreateImage(filepath.Join(t.TempDir(), "image"), vhdx.CreateOptions{Size: mib, BlockSize: mib})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = small.Abort() }()
	if _, err := disk.Copy(t.Context(), small, src, disk.Options{}); err == nil {
		t.Error("copied to a disk that is too small")
	}
}

// I-CPY-1: wherever a copy ends, what it has Saved is there, and From goes on
// from it.
func TestCopyResumed(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	const size = 24 * mib
	want := make([]byte, size)
	for i := range want {
		want[i] = byte(r.Uint32())
	}
	src := openFile(t, sparse(t, want))
	raw, err := disk.CreateFile(filepath.Join(t.TempDir(), "raw"), size)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = raw.Abort() }()
	stop := errors.New("stop")
	var saved int64
	for attempts := 1; ; attempts++ {
		from := saved
		_, err := disk.Copy(t.Context(), raw, src, disk.Options{
			Blank: true, From: from, Workers: 3, Interval: 1,
			Saved: func(upTo int64) error {
				if upTo < saved {
					t.Errorf("saved %#x after %#x", upTo, saved)
				}
				if saved = upTo; upTo >= from+5*mib {
					return stop
				}
				return nil
			},
		})
		if got := readAll(t, raw, saved); !bytes.Equal(got, want[:saved]) {
			t.Fatalf("attempt %d: not all before %#x is there", attempts, saved)
		}
		if err == nil {
			if attempts < 3 {
				t.Fatalf("done in %d attempts", attempts)
			}
			break
		}
		if !errors.Is(err, stop) {
			t.Fatal(err)
		}
	}
	if got := readAll(t, raw, size); !bytes.Equal(got, want) {
		t.Fatal("differs")
	}
}

// I-CPY-2: a copy that is ended leaves nothing, whatever its target.
func TestCopyEnded(t *testing.T) {
	src := openFile(t, sparse(t, bytes.Repeat([]byte{1}, 8*mib)))
	dir := t.TempDir()
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	progress := func(done, _ int64) error {
		if done >= mib {
			cancel(cause)
		}
		return nil
	}
	im, _, err := disk.CreateImage(filepath.Join(dir, "image"), vhdx.CreateOptions{Size: 8 * mib})
	if err != nil {
		t.Fatal(err)
	}
	_, err = disk.Copy(ctx, im, src, disk.Options{Blank: true, Workers: 2, Progress: progress})
	if !errors.Is(err, cause) {
		t.Fatalf("error %v", err)
	}
	if err := im.Abort(); err != nil {
		t.Fatal(err)
	}
	raw, err := disk.CreateFile(filepath.Join(dir, "raw"), 8*mib)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := disk.Copy(ctx, raw, src, disk.Options{}); !errors.Is(err, cause) {
		t.Fatalf("error %v", err)
	}
	if err := raw.Abort(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Fatalf("left: %v, %v", left, err)
	}
	// A pipe that breaks must not leave a worker waiting for its turn.
	broken := disk.NewStream(writer(func(p []byte) (int, error) { return 0, cause }), 8*mib)
	if _, err := disk.Copy(t.Context(), broken, src, disk.Options{Whole: true, Workers: 4}); !errors.Is(err, cause) {
		t.Fatalf("error %v", err)
	}
}

type writer func(p []byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// A source that fails, or is shorter than it says, is named with the place.
func TestCopyFails(t *testing.T) {
	path := sparse(t, bytes.Repeat([]byte{1}, 8*mib))
	src := openFile(t, path)
	if err := os.Truncate(path, 3*mib); err != nil {
		t.Fatal(err)
	}
	raw, err := disk.CreateFile(filepath.Join(t.TempDir(), "raw"), 8*mib)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = raw.Abort() }()
	// NextData may see the new end and call the rest a hole; a source that
	// cannot tell is read.
	if _, err := disk.Copy(t.Context(), raw, blind{src}, disk.Options{Blank: true}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("error %v", err)
	}
}

// blind is a source that knows no holes.
type blind struct{ disk.Source }

func (b blind) NextData(off int64) (start, end int64, err error) { return off, b.Size(), nil }

// Compare finds the first difference, wherever it is, and nothing else.
func TestCompare(t *testing.T) {
	for seed := range seeds(20) {
		r := rand.New(rand.NewPCG(seed, 7))
		size := 6*mib + r.IntN(8)*512
		a := content(r, size)
		b := bytes.Clone(a)
		want := int64(-1)
		if seed%4 != 0 {
			at := r.IntN(size)
			for range 1 + r.IntN(3) {
				b[at] ^= 0x55
				if want < 0 || int64(at) < want {
					want = int64(at)
				}
				at = min(at+1+r.IntN(mib), size-1)
			}
			for i := range b { // a byte may have been changed back
				if a[i] != b[i] {
					want = int64(i)
					break
				}
			}
		}
		if seed%3 == 0 { // longer, by zeros
			b = append(b, make([]byte, 3*512)...)
		}
		x, y := openFile(t, sparse(t, a)), openFile(t, sparse(t, b))
		for _, o := range []disk.CompareOptions{{Workers: 1}, {Workers: 7}} {
			if got, err := disk.Compare(t.Context(), x, y, o); got != want || err != nil {
				t.Fatalf("seed %d: %#x, %v; want %#x", seed, got, err, want)
			}
			if got, err := disk.Compare(t.Context(), blind{y}, x, o); got != want || err != nil {
				t.Fatalf("seed %d, the other way round: %#x, %v; want %#x", seed, got, err, want)
			}
		}
	}
}
