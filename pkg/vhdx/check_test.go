package vhdx_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

func check(t *testing.T, f vhdx.File) *vhdx.Report {
	t.Helper()
	r, err := vhdx.Check(t.Context(), f, vhdx.CheckOptions{})
	if err != nil {
		t.Fatalf("check: %v", err)
	}
	return r
}

func found(r *vhdx.Report) []string {
	var all []string
	for _, f := range r.Findings {
		all = append(all, fmt.Sprintf("%s %s", f.Severity, f.Code))
	}
	return all
}

func TestCheck(t *testing.T) {
	for _, d := range damages {
		t.Run(d.name, func(t *testing.T) {
			s := d.made(t)
			before := s.Hash()
			r := check(t, s.File)
			if diff := cmp.Diff(d.finds, found(r)); diff != "" {
				t.Fatalf("findings: %s\n%v", diff, r.Findings)
			}
			if s.Hash() != before {
				t.Fatal("the check changed the file")
			}
			if why := disagreement(s.File, r, nil); why != "" {
				t.Fatal(why)
			}
			for _, f := range r.Findings {
				if f.Text == "" || f.Place.Structure == "" || f.Severity == vhdx.SeverityCorrupt && f.Advice == "" && f.Repair == "" {
					t.Fatalf("a finding without text, place or way out: %+v", f)
				}
			}
		})
	}
}

// What is no image at all cannot be checked, and neither can what cannot be read.
func TestCheckRefuses(t *testing.T) {
	f := vhdxtest.NewFile("text")
	f.WriteAt([]byte("vhdxfile is not enough"), 0)
	if _, err := vhdx.Check(t.Context(), vhdxtest.NewFile("empty"), vhdx.CheckOptions{}); !errors.Is(err, vhdx.ErrNotVHDX) {
		t.Fatalf("an empty file: %v", err)
	}
	if _, err := vhdx.Check(t.Context(), f, vhdx.CheckOptions{}); !errors.Is(err, vhdx.ErrNotVHDX) {
		t.Fatalf("a file that ends inside its identifier: %v", err)
	}
	s := newSpoil(t, 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := vhdx.Check(ctx, s.File, vhdx.CheckOptions{}); !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled: %v", err)
	}
	stop := errors.New("stop")
	if _, err := vhdx.Check(t.Context(), s.File, vhdx.CheckOptions{Progress: func(int64, int64) error { return stop }}); !errors.Is(err, stop) {
		t.Fatalf("stopped by its progress: %v", err)
	}
	for n := 1; ; n++ {
		c := s.Clone()
		c.Inject(vhdxtest.Fault{Kind: vhdxtest.Read, N: n, Err: os.ErrDeadlineExceeded})
		_, err := vhdx.Check(t.Context(), c, vhdx.CheckOptions{})
		if c.FaultsLeft() > 0 {
			break
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("read %d fails: %v", n, err)
		}
	}
}

// Findings beyond the limit are counted, and their texts are not made.
func TestCheckCountsWhatItDoesNotList(t *testing.T) {
	s := newSpoil(t, 1)
	for i := range int64(50) {
		s.entry(i, present(1<<40))
	}
	r, err := vhdx.Check(t.Context(), s.File, vhdx.CheckOptions{PerCode: 3})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Findings) != 4 || r.Counts[vhdx.SeverityCorrupt] != 50 || r.Omitted != 47 {
		t.Fatalf("%d findings, %v, %d omitted", len(r.Findings), r.Counts, r.Omitted)
	}
}

// Images of other software have nothing that Check calls damage.
func TestCheckSamples(t *testing.T) {
	for _, s := range samples {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			r := checkPath(t, s.unpack(t))
			if r.Corrupt() || r.Stopped != "" || r.Dirty != s.dirty || r.Clean() == s.dirty {
				t.Fatalf("clean %v, dirty %v, stopped %q: %v", r.Clean(), r.Dirty, r.Stopped, r.Findings)
			}
			if r.Allocated != s.allocated || r.VirtualSize != s.size || r.BlockSize != s.block {
				t.Fatalf("%d blocks allocated of %d bytes, size %d; want %d, %d, %d", r.Allocated, r.BlockSize, r.VirtualSize, s.allocated, s.block, s.size)
			}
		})
	}
}

func checkPath(t *testing.T, path string) *vhdx.Report {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	of, err := vhdx.NewOSFile(f, vhdx.FileOptions{ReadOnly: true, Buffered: true})
	if err != nil {
		t.Fatal(errors.Join(err, f.Close()))
	}
	defer of.Close()
	return check(t, of)
}

func TestFindingText(t *testing.T) {
	s := newSpoil(t, 2)
	s.entry(1, s.entryAt(0))
	r := check(t, s.File)
	f, ok := r.Worst()
	want := "corrupt: BAT entry 1 at offset 0x300008: 0x400006: its 0x100000 bytes at 0x400000 are claimed by BAT entry 0 too [bat-overlap]; repair: give it a copy of its own"
	if !ok || f.String() != want || !strings.Contains(f.Place.String(), "0x300008") {
		t.Fatalf("got %q\nwant %q", f, want)
	}
}
