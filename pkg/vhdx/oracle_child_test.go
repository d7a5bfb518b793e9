package vhdx_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// Other people's readers find in a chain of ours what was written through it:
// 7-Zip unpacks it, vhdimount serves it.
func TestOracleChain(t *testing.T) {
	for sector, discard := range map[int]bool{512: false, 4096: true} {
		t.Run(fmt.Sprint(sector), func(t *testing.T) {
			dir := t.TempDir()
			top, want := oracleChain(t, dir, sector, discard)
			raw := filepath.Join(dir, "raw")
			if err := os.WriteFile(raw, want, 0o600); err != nil {
				t.Fatal(err)
			}
			layers := layersOf(t, top, vhdx.OpenOptions{Parents: vhdx.ParentsIn(dir)}, raw)
			ask7z(t, top, raw)
			askVhdiinfo(t, top, sector, int64(len(want)), layers)
			if !discard { // libvhdi 20210425 takes a block that is ZERO or UNMAPPED for the parent's
				mountChain(t, top, raw)
			}
		})
	}
}

// askVhdiinfo has libvhdi say what a child is.
func askVhdiinfo(t *testing.T, path string, sector int, size int64, layers []vhdx.Layer) {
	t.Helper()
	out := ask(t, "vhdiinfo", path)
	for field, want := range map[string]string{
		"Disk type":         "Differential",
		"Media size":        fmt.Sprintf(`.*\(%d bytes\)`, size),
		"Bytes per sector":  fmt.Sprintf("%d bytes", sector),
		"Identifier":        layers[0].DataWriteGUID,
		"Parent identifier": layers[1].DataWriteGUID,
	} {
		if !regexp.MustCompile(`(?m)^\s*` + field + `\s*: ` + want + "$").MatchString(out) {
			t.Fatalf("vhdiinfo does not say that %s is %s:\n%s", field, want, out)
		}
	}
}

// Other people's readers find in a child whose disk has another size than its
// parent's what this package does, after each change of the size.
func TestOracleResizedChild(t *testing.T) {
	for sector, sizes := range map[int][]int64{
		512:  {9*mib + 512, 30 * mib, 30*mib + 1024, 5*mib + 1536, 5 * mib, 64 * mib},
		4096: {9*mib + 4096, 30 * mib, 5*mib + 8192, 41 * mib},
	} {
		t.Run(fmt.Sprint(sector), func(t *testing.T) {
			dir := t.TempDir()
			top, want := oracleChain(t, dir, sector, false)
			o := vhdx.OpenOptions{Parents: vhdx.ParentsIn(dir)}
			for i, size := range sizes {
				im := open(t, top, o)
				must(t, im.Resize(size, vhdx.ResizeOptions{CutData: true}))
				want = append(want[:min(size, int64(len(want)))], make([]byte, max(0, size-int64(len(want))))...)
				off := size - int64(sector)
				copy(want[off:], fillRandom(uint64(i), int64(sector)))
				_, err := im.WriteAt(want[off:], off)
				must(t, err)
				closeImage(t, im)
				raw := filepath.Join(dir, "raw")
				must(t, os.WriteFile(raw, want, 0o600))
				askVhdiinfo(t, top, sector, size, layersOf(t, top, o, raw))
				if size%int64(2*sector) == 0 && size <= 40*mib { // it refuses an odd number of sectors, and ends where the parent does
					ask7z(t, top, raw)
				}
			}
		})
	}
}

// layersOf describes an image that shows what a raw file holds.
func layersOf(t *testing.T, path string, o vhdx.OpenOptions, raw string) []vhdx.Layer {
	t.Helper()
	o.ReadOnly = true
	im := open(t, path, o)
	sameAsRaw(t, im, raw)
	defer closeImage(t, im)
	return im.Layers()
}

// oracleChain makes a chain of three with different block sizes in
// subdirectories, and returns the top and what it shows.
func oracleChain(t *testing.T, dir string, sector int, discard bool) (top string, want []byte) {
	t.Helper()
	const size = 40 * mib
	r := rand.New(rand.NewPCG(uint64(sector), 9))
	want = make([]byte, size)
	o := vhdx.OpenOptions{Parents: vhdx.ParentsIn(dir)}
	top = filepath.Join(dir, "base.vhdx")
	if _, err := vhdx.Create(top, vhdx.CreateOptions{Size: size, BlockSize: 4 * mib, LogicalSectorSize: sector}); err != nil {
		t.Fatal(err)
	}
	for depth := range 3 {
		if depth > 0 {
			child := filepath.Join(dir, fmt.Sprintf("child-%d.vhdx", depth))
			if _, err := vhdx.CreateChild(child, top, vhdx.ChildOptions{BlockSize: mib << depth, Absolute: true}); err != nil {
				t.Fatal(err)
			}
			top = child
		}
		im := open(t, top, o)
		for range 40 {
			n := int64(sector) * (1 + r.Int64N(600))
			off := r.Int64N((size-n)/int64(sector)) * int64(sector)
			for i := range want[off : off+n] {
				want[off+int64(i)] = byte(r.Uint32())
			}
			if _, err := im.WriteAt(want[off:off+n], off); err != nil {
				t.Fatal(err)
			}
		}
		if discard {
			off := r.Int64N(9) * 4 * mib
			clear(want[off : off+4*mib])
			if err := im.Discard(off, 4*mib); err != nil {
				t.Fatal(err)
			}
		}
		closeImage(t, im)
	}
	return top, want
}

// mountChain has vhdimount serve a chain as a raw file.
func mountChain(t *testing.T, top, raw string) {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command(oracle(t, "vhdimount"), "-v", top, dir)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = exec.Command("fusermount3", "-u", dir).Run()
		_ = exec.Command("umount", dir).Run()
		_ = cmd.Wait()
	}()
	for range 100 {
		if all, err := os.ReadDir(dir); err == nil && len(all) > 0 {
			served, err := os.Open(filepath.Join(dir, all[len(all)-1].Name()))
			if err != nil {
				t.Fatal(err)
			}
			diff := sameBytes(served, openRaw(t, raw))
			if err := errors.Join(diff, served.Close()); err != nil {
				t.Fatalf("vhdimount serves %v: %v\n%s", all, err, &out)
			}
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("vhdimount serves nothing:\n%s", &out)
}
