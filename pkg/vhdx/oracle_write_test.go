package vhdx_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// twin is an image and a raw file that get the same writes.
type imageTwin struct {
	im        *vhdx.Image
	path, raw string
	f         *os.File // raw
	rng       *rand.Rand
}

func openTwin(t *testing.T, path, raw string, o vhdx.OpenOptions) *imageTwin {
	t.Helper()
	f, err := os.OpenFile(raw, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	w := &imageTwin{im: open(t, path, o), path: path, raw: raw, f: f, rng: rand.New(rand.NewPCG(3, 4))}
	if err := f.Truncate(w.im.Size()); err != nil {
		t.Fatal(err)
	}
	return w
}

// write fills a range with sectors that tell where they are and of which
// write they come.
func (w *imageTwin) write(t *testing.T, off, n int64, seed byte) {
	t.Helper()
	p := make([]byte, n)
	for i := range p {
		p[i] = seed ^ byte(i>>9) ^ byte(i*3)
	}
	if _, err := w.im.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
	if _, err := w.f.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
}

func (w *imageTwin) zero(t *testing.T, off, n int64, how func(off, n int64) error) {
	t.Helper()
	if err := how(off, n); err != nil {
		t.Fatal(err)
	}
	if _, err := w.f.WriteAt(make([]byte, n), off); err != nil {
		t.Fatal(err)
	}
}

func (w *imageTwin) grow(t *testing.T, size int64) {
	t.Helper()
	if err := w.im.Grow(size); err != nil {
		t.Fatal(err)
	}
	if err := w.f.Truncate(size); err != nil {
		t.Fatal(err)
	}
}

func (w *imageTwin) flush(t *testing.T) {
	t.Helper()
	if err := w.im.Flush(); err != nil {
		t.Fatal(err)
	}
}

func (w *imageTwin) close(t *testing.T) {
	t.Helper()
	closeImage(t, w.im)
}

// step does one random thing. Three ranges of the disk get most of it, so that
// writes meet each other.
func (w *imageTwin) step(t *testing.T) {
	t.Helper()
	sector, size := int64(w.im.LogicalSectorSize()), w.im.Size()
	n := 1 + w.rng.Int64N([]int64{1, 16, 600, 3000}[w.rng.IntN(4)])
	n = min(n*sector, size)
	off := w.rng.Int64N((size-n)/sector+1) * sector
	if spot := w.rng.Int64N(4); spot > 0 {
		off = min(size/4*spot+w.rng.Int64N(4*mib/sector)*sector, size-n)
	}
	switch w.rng.IntN(12) {
	case 0:
		w.zero(t, off, n, w.im.WriteZeroes)
	case 1:
		w.zero(t, off, n, w.im.Discard)
	default:
		w.write(t, off, n, byte(w.rng.Uint32()))
	}
}

// check has every oracle that can read the closed image compare it.
func (w *imageTwin) check(t *testing.T, path string) {
	t.Helper()
	im := open(t, path, vhdx.OpenOptions{ReadOnly: true, RefuseDirty: true})
	sector := im.LogicalSectorSize()
	sameAsRaw(t, im, w.raw)
	closeImage(t, im)
	if sector == 512 {
		askCheck(t, path)
		askCompare(t, path, w.raw)
	} else {
		ask7z(t, path, w.raw)
		ask(t, "vhdiinfo", path)
	}
}

// checkDirty takes the file as a power cut after a flush would leave it, and has
// its log applied in memory, replayed by us, and replayed by QEMU.
func (w *imageTwin) checkDirty(t *testing.T) {
	t.Helper()
	w.flush(t)
	dir := t.TempDir()
	ours, theirs := filepath.Join(dir, "ours.vhdx"), filepath.Join(dir, "theirs.vhdx")
	copyFile(t, w.path, ours)
	copyFile(t, w.path, theirs)
	if _, err := vhdx.OpenPath(ours, vhdx.OpenOptions{RefuseDirty: true}); !errors.Is(err, vhdx.ErrLogReplayRequired) {
		t.Fatalf("the copy is not dirty: %v", err)
	}
	im := open(t, ours, vhdx.OpenOptions{ReadOnly: true})
	sameAsRaw(t, im, w.raw)
	closeImage(t, im)

	im = open(t, ours, vhdx.OpenOptions{})
	sameAsRaw(t, im, w.raw)
	closeImage(t, im)
	w.check(t, ours)

	if im.LogicalSectorSize() == 512 {
		if out := ask(t, "qemu-img", "check", "-f", "vhdx", "-r", "all", theirs); !strings.Contains(out, "repaired") {
			t.Fatalf("qemu-img check -r all: %s", out)
		}
		w.check(t, theirs)
	}
	for _, path := range []string{ours, theirs} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOracleWritten(t *testing.T) {
	oracle(t, "qemu-img")
	tests := []struct {
		name string
		o    vhdx.CreateOptions
		grow int64 // in the middle, if not 0
	}{
		{"dynamic", vhdx.CreateOptions{Size: 200*mib + 1024, BlockSize: mib}, 0},
		{"dynamic, default block", vhdx.CreateOptions{Size: 100 * mib}, 150*mib + 512},
		{"large blocks", vhdx.CreateOptions{Size: 600 * mib, BlockSize: 256 * mib}, 0},
		{"fixed", vhdx.CreateOptions{Size: 120*mib + 1024, BlockSize: mib, Fixed: true}, 0},
		{"fixed, grown", vhdx.CreateOptions{Size: 20 * mib, BlockSize: 2 * mib, Fixed: true}, 33 * mib},
		{"4 KiB sectors", vhdx.CreateOptions{Size: 200*mib + 8192, BlockSize: 2 * mib, LogicalSectorSize: 4096}, 0},
		{"two chunks", vhdx.CreateOptions{Size: 4*gib + 100*mib, BlockSize: 32 * mib}, 0},
		{"grown into a second chunk", vhdx.CreateOptions{Size: 4*gib - mib, BlockSize: 16 * mib}, 4*gib + 70*mib + 512},
	}
	for _, tt := range tests {
		if testing.Short() && tt.o.Size > 500*mib {
			continue
		}
		t.Run(tt.name, func(t *testing.T) {
			path := create(t, tt.o)
			raw := filepath.Join(t.TempDir(), "raw")
			o := vhdx.OpenOptions{GrowthStep: 8 * mib}
			large := tt.o.Size > gib
			rounds := 3
			if testing.Short() {
				rounds = 1
			}
			for round := range rounds {
				w := openTwin(t, path, raw, o)
				w.rng = rand.New(rand.NewPCG(uint64(round), 5))
				for i := range 120 {
					w.step(t)
					if i%9 == 0 {
						w.flush(t)
					}
					if i == 60 && tt.grow != 0 && round == rounds/2 {
						w.grow(t, tt.grow)
					}
				}
				if !large || round == rounds-1 {
					w.checkDirty(t)
				}
				w.step(t)
				w.close(t)
				if !large {
					w.check(t, path)
				}
			}
		})
	}
}

// QEMU scans the ring from its start and takes the run of entries that begins
// with the greatest number; it does not look at Tails. In a ring that has been
// used before that is what came after the last lap began: nothing before it may
// still be needed, at any moment. Each write changes another page of the BAT, so
// that no later entry hides the loss of an earlier one.
func TestOracleLogWraps(t *testing.T) {
	const lap = 128 // as many entries of one page fill the ring
	w := newWrapTest(t, 3*lap+20)
	for i := range int64(3*lap + 20) {
		w.flush(t, i)
		if since := (i + 10) % lap; i < 20 || since >= 20 || testing.Short() && (i+10)/lap != 2 {
			continue // not near the end of a lap
		}
		w.replayByQEMU(t)
	}
	w.close(t)
}

// Entries of all sizes, up to what takes several of them in one flush.
func TestOracleLogWrapsAnySize(t *testing.T) {
	const pages = 600
	w := newWrapTest(t, pages)
	rng := rand.New(rand.NewPCG(6, 7))
	for i := range 90 {
		n := 1 + rng.IntN([]int{3, 30, 130, 560}[min(rng.IntN(7), 3)])
		if n > 500 && i%2 == 0 {
			n = 1
		}
		first := rng.Int64N(pages)
		changed := make([]int64, n)
		for k := range changed {
			changed[k] = (first + int64(k)) % pages
		}
		w.flush(t, changed...)
		if i%5 == 4 && !testing.Short() || i%30 == 29 { // it syncs for every page
			w.replayByQEMU(t)
		}
	}
	w.close(t)
}

// wrapTest is an image of which every write takes a new block, in a page of the
// BAT that the test chooses.
type wrapTest struct {
	im          *vhdx.Image
	path, dirty string
	blocks      map[int64]int64 // written so far, by page
	flushes     int
}

const wrapApart = 512 * mib // what a page of the BAT maps, at 1 MiB blocks

func newWrapTest(t *testing.T, pages int64) *wrapTest {
	t.Helper()
	oracle(t, "qemu-img")
	path := create(t, vhdx.CreateOptions{Size: pages * wrapApart, BlockSize: mib})
	return &wrapTest{
		im: open(t, path, vhdx.OpenOptions{GrowthStep: 64 * mib}), path: path,
		dirty: filepath.Join(t.TempDir(), "dirty.vhdx"), blocks: map[int64]int64{},
	}
}

func wrapPage(off int64) []byte { return bytes.Repeat(fmt.Appendf(nil, "%015d\n", off), 4096/16) }

// flush writes a block in each of the pages, and flushes once.
func (w *wrapTest) flush(t *testing.T, pages ...int64) {
	t.Helper()
	for _, page := range pages {
		off := page*wrapApart + w.blocks[page]*mib
		if _, err := w.im.WriteAt(wrapPage(off), off); err != nil {
			t.Fatal(err)
		}
		w.blocks[page]++
	}
	if err := w.im.Flush(); err != nil {
		t.Fatal(err)
	}
	w.flushes++
}

// replayByQEMU has QEMU replay the log of a copy, and looks for every block.
func (w *wrapTest) replayByQEMU(t *testing.T) {
	t.Helper()
	copyFile(t, w.path, w.dirty)
	if out := ask(t, "qemu-img", "check", "-f", "vhdx", "-r", "all", w.dirty); !strings.Contains(out, "repaired") {
		t.Fatalf("qemu-img check -r all: %s", out)
	}
	im := open(t, w.dirty, vhdx.OpenOptions{ReadOnly: true, RefuseDirty: true})
	defer closeImage(t, im)
	p := make([]byte, 4096)
	for page, blocks := range w.blocks {
		for k := range blocks {
			off := page*wrapApart + k*mib
			if _, err := im.ReadAt(p, off); err != nil || !bytes.Equal(p, wrapPage(off)) {
				t.Fatalf("after flush %d, replayed by QEMU: the block at %#x is lost: %v", w.flushes, off, err)
			}
		}
	}
}

func (w *wrapTest) close(t *testing.T) {
	t.Helper()
	closeImage(t, w.im)
	askCheck(t, w.path)
}
