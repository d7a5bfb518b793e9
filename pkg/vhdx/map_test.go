package vhdx_test

import (
	"bytes"
	"errors"
	"io"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// Runs cover the disk once, in order, and say of data where it lies; NextData
// leaves out what the block table or the filesystem knows to be zero.
func TestRuns(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if _, err := vhdx.Create(path, vhdx.CreateOptions{Size: 64*mib + 512, BlockSize: mib}); err != nil {
		t.Fatal(err)
	}
	im, err := vhdx.OpenPath(path, vhdx.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	page := bytes.Repeat([]byte{1}, 4096)
	for _, off := range []int64{3 * mib, 4*mib + 8192, 10 * mib, 64*mib - 4096} {
		if _, err := im.WriteAt(page, off); err != nil {
			t.Fatal(err)
		}
	}
	type run struct {
		Offset, Length int64
		Kind           vhdx.RunKind
	}
	var got []run
	for off := int64(0); ; {
		r, err := im.NextRun(off)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil || r.Offset != off || r.Length <= 0 || r.Layer != 0 || (r.FileOffset >= 0) != (r.Kind == vhdx.RunData) {
			t.Fatalf("at %#x: %+v, %v", off, r, err)
		}
		got = append(got, run{r.Offset, r.Length, r.Kind})
		off += r.Length
	}
	want := []run{
		{0, 3 * mib, vhdx.RunAbsent},
		{3 * mib, 2 * mib, vhdx.RunData},
		{5 * mib, 5 * mib, vhdx.RunAbsent},
		{10 * mib, mib, vhdx.RunData},
		{11 * mib, 52 * mib, vhdx.RunAbsent},
		{63 * mib, mib, vhdx.RunData},
		{64 * mib, 512, vhdx.RunAbsent},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("runs (-want +got):\n%s", diff)
	}
	if _, err := im.NextRun(65 * mib); !errors.Is(err, vhdx.ErrOutOfRange) {
		t.Errorf("beyond the end: %v", err)
	}

	// The temporary directory may be on a filesystem without holes: then whole
	// blocks are data.
	var data int64
	size := im.Size()
	seen := make([]bool, 64)
	for off := int64(0); ; {
		start, end, err := im.NextData(off)
		if err != nil || start < off || end < start {
			t.Fatalf("at %#x: %#x, %#x, %v", off, start, end, err)
		}
		if start == size {
			break
		}
		data += end - start
		for b := start / mib; b <= (end-1)/mib; b++ {
			seen[b] = true
		}
		off = end
	}
	for b, is := range seen {
		if want := b == 3 || b == 4 || b == 10 || b == 63; is != want {
			t.Errorf("block %d: data %v, want %v", b, is, want)
		}
	}
	if data < 4*4096 || data > 4*mib {
		t.Errorf("%d bytes of data", data)
	}
}
