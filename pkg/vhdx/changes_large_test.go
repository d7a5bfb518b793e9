package vhdx_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// The maps of a disk of the largest size take no more memory than those of a
// small one: its table alone is 32 MiB here (I-DIFF-3).
func TestChangesOfLargeDisk(t *testing.T) {
	const tib = int64(1) << 40
	dir := t.TempDir()
	path := func(n int) string { return filepath.Join(dir, fmt.Sprint(n)) }
	places := []int64{0, 5 * gib, 20*tib + 3*mib, 64*tib - 4096}
	want := make([][][2]int64, 2)
	_, err := vhdx.Create(path(0), vhdx.CreateOptions{Size: 64 * tib, BlockSize: 16 * mib})
	must(t, err)
	for n := range 2 {
		if n > 0 {
			_, err := vhdx.CreateChild(path(n), path(n-1), vhdx.ChildOptions{BlockSize: 16 * mib})
			must(t, err)
		}
		im := open(t, path(n), vhdx.OpenOptions{Parents: vhdx.ParentsIn(dir), GrowthStep: mib})
		for _, off := range places {
			off = off - int64(n)*4096&off
			_, err := im.WriteAt(fillRandom(uint64(off), 4096), off)
			must(t, err)
			want[n] = append(want[n], [2]int64{off, 4096})
		}
		closeImage(t, im)
	}
	outline := func(n int) *vhdx.Outline {
		f, err := os.Open(path(n))
		must(t, err)
		of, err := vhdx.NewOSFile(f, vhdx.FileOptions{ReadOnly: true})
		must(t, err)
		o, err := vhdx.OpenOutline(of, vhdx.ParentsIn(dir))
		must(t, err)
		return o
	}
	var got [][2]int64
	visit := func(off, n int64) error {
		got = append(got, [2]int64{off, n})
		return nil
	}
	took := allocated(func() {
		o, base := outline(1), outline(0)
		must(t, o.Changed(t.Context(), base, 0, visit))
		if d := cmp.Diff(want[1], got); d != "" {
			t.Errorf("changed (-want +got)\n%s", d)
		}
		got = nil
		must(t, o.Allocated(t.Context(), 5*gib, visit))
		must(t, o.Close())
		must(t, base.Close())
	})
	if len(got) == 0 || got[0][0] < 5*gib-4096 || got[len(got)-1][0]+got[len(got)-1][1] != 64*tib {
		t.Errorf("allocated: %x", got)
	}
	if took > 4*mib && !raceEnabled { // its own memory counts too
		t.Errorf("%d bytes of memory for the maps of a disk of 64 TiB", took)
	}
}
