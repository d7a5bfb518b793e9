package vhdx_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// The oracles are other people's readers of the format. Whatever this package
// writes, they must accept, and find in it what was written.

// oracle returns the path of a program. Where it is missing the test is
// skipped, but never in CI.
func oracle(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%v: install qemu-utils, 7zip and libvhdi-utils", err)
		}
		t.Skipf("%v: install qemu-utils, 7zip and libvhdi-utils to run it", err)
	}
	return path
}

// ask runs an oracle, which must succeed, and returns what it says.
func ask(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // QEMU can search a log for ever
	defer cancel()
	cmd := exec.CommandContext(ctx, oracle(t, name), args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %q: %v\n%s%s", name, args, err, &out, &errOut)
	}
	return out.String() + errOut.String()
}

// askCheck has qemu-img check an image that must be clean.
func askCheck(t *testing.T, path string) {
	t.Helper()
	if out := ask(t, "qemu-img", "check", "-f", "vhdx", path); !strings.Contains(out, "No errors were found") {
		t.Fatalf("qemu-img check: %s", out)
	}
}

// askCompare has qemu-img compare an image with a raw file, size included.
func askCompare(t *testing.T, path, raw string) {
	t.Helper()
	if out := ask(t, "qemu-img", "compare", "-f", "vhdx", "-F", "raw", path, raw); out != "Images are identical.\n" {
		t.Fatalf("qemu-img compare %s %s: %s", path, raw, out)
	}
}

// ask7z has 7-Zip unpack the virtual disk and compares it with a raw file.
func ask7z(t *testing.T, path, raw string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), oracle(t, "7zz"), "e", "-so", "-tvhdx", path)
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	want := openRaw(t, raw)
	diff := sameBytes(out, want)
	_, _ = io.Copy(io.Discard, out)
	if err := cmd.Wait(); err != nil || diff != nil {
		t.Fatalf("7zz e %s: %v, %v\n%s", path, err, diff, &errOut)
	}
}

func openRaw(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// sameBytes reports where two streams differ.
func sameBytes(got, want io.Reader) error {
	a, b := make([]byte, mib), make([]byte, mib)
	for off := int64(0); ; off += mib {
		n, errA := io.ReadFull(got, a)
		m, errB := io.ReadFull(want, b)
		if n != m || !bytes.Equal(a[:n], b[:m]) {
			return fmt.Errorf("they differ in the MiB at %#x (%d and %d bytes)", off, n, m)
		}
		if errA != nil || errB != nil {
			for _, err := range []error{errA, errB} {
				if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
					return err
				}
			}
			return nil
		}
	}
}

// sameAsRaw compares the whole virtual disk with a raw file.
func sameAsRaw(t *testing.T, im *vhdx.Image, raw string) {
	t.Helper()
	if err := sameBytes(io.NewSectionReader(im, 0, im.Size()), openRaw(t, raw)); err != nil {
		t.Fatalf("%s and %s: %v", im.Info().File, raw, err)
	}
}

// copyFile copies a file as it is on the medium now, holes left out.
func copyFile(t *testing.T, from, to string) {
	t.Helper()
	ask(t, "cp", "--sparse=always", from, to)
}

// Every block size, both logical sector sizes, dynamic and fixed, sizes that
// are no multiple of the block size.
func TestOracleCreated(t *testing.T) {
	for block := mib; block <= 256*mib; block *= 2 {
		for _, sector := range []int{512, 4096} {
			for _, fixed := range []bool{false, true} {
				if fixed && block > 8*mib && block < 256*mib || testing.Short() && block != mib && block != 256*mib {
					continue // as the others, but bigger
				}
				o := vhdx.CreateOptions{
					// An even number of sectors: 7-Zip refuses odd ones, mistaking
					// one bit of the size for its remainder.
					Size:      block + 6*mib + 2*int64(sector),
					BlockSize: block, LogicalSectorSize: sector, Fixed: fixed,
					Creator: "oracle test",
				}
				t.Run(fmt.Sprintf("%dM-%d-fixed=%v", block/mib, sector, fixed), func(t *testing.T) { oracleCreated(t, o) })
			}
		}
	}
}

func oracleCreated(t *testing.T, o vhdx.CreateOptions) {
	path := create(t, o)
	im := open(t, path, vhdx.OpenOptions{ReadOnly: true})
	info := im.Info()
	closeImage(t, im)
	oracleQEMUInfo(t, path, o)
	kind := map[bool]string{false: "dynamic", true: "fixed"}[o.Fixed]

	out := ask(t, "7zz", "l", "-slt", "-tvhdx", path)
	for _, want := range []string{
		fmt.Sprintf("\nCluster Size = %d\n", o.BlockSize),
		fmt.Sprintf("\nSector Size = %d\n", o.LogicalSectorSize),
		fmt.Sprintf("\nMethod = %s\n", kind), // "fixed-non-cont" where blocks are missing or out of order
		fmt.Sprintf("\nVirtualDiskSize: %d\n", o.Size),
		fmt.Sprintf("\nPhysicalSize: %d\n", info.FileSize),
		"\nCreator Application = oracle test\n", "\nFreeSpace: 0 (0 MiB)\n", "\nHasParent: -\n",
	} {
		if !strings.Contains(out, want) || strings.Contains(out, "rror") || strings.Contains(out, "Warning") {
			t.Fatalf("7zz does not say %q:\n%s", want, out)
		}
	}

	out = ask(t, "vhdiinfo", path)
	for field, want := range map[string]string{
		"Disk type":        "(?i)" + kind,
		"Media size":       fmt.Sprintf(`.*\(%d bytes\)`, o.Size),
		"Bytes per sector": fmt.Sprintf("%d bytes", o.LogicalSectorSize),
		"Identifier":       info.DataWriteGUID,
	} {
		if !regexp.MustCompile(`(?m)^\s*` + field + `\s*: ` + want + "$").MatchString(out) {
			t.Fatalf("vhdiinfo does not say that %s is %s:\n%s", field, want, out)
		}
	}
}

func oracleQEMUInfo(t *testing.T, path string, o vhdx.CreateOptions) {
	t.Helper()
	if o.LogicalSectorSize != 512 {
		return // QEMU knows no other
	}
	askCheck(t, path)
	var info struct {
		Size   int64  `json:"virtual-size"`
		Block  int64  `json:"cluster-size"`
		Format string `json:"format"`
		Dirty  bool   `json:"dirty-flag"`
	}
	out := ask(t, "qemu-img", "info", "--output=json", path) // the format is probed
	if err := json.Unmarshal([]byte(out), &info); err != nil {
		t.Fatal(err)
	}
	if info.Size != o.Size || info.Block != o.BlockSize || info.Format != "vhdx" || info.Dirty {
		t.Fatalf("qemu-img info: %+v", info)
	}
}

// The largest disk, with the largest table.
func TestOracleCreatedHuge(t *testing.T) {
	for _, block := range []int64{mib, 256 * mib} {
		o := vhdx.CreateOptions{Size: 64 * tib, BlockSize: block}
		if block == mib && testing.Short() {
			continue // its BAT is half a GiB
		}
		path := create(t, o)
		made := o
		made.LogicalSectorSize = 512
		oracleQEMUInfo(t, path, made)
		im := open(t, path, vhdx.OpenOptions{})
		p := bytes.Repeat([]byte{0x5a}, 4096)
		if _, err := im.WriteAt(p, o.Size-4096); err != nil {
			t.Fatal(err)
		}
		closeImage(t, im)
		askCheck(t, path)
		ask(t, "qemu-io", "-f", "vhdx", "-r", "-c", fmt.Sprintf("read -P 0x5a %d 4096", o.Size-4096), "-c", fmt.Sprintf("read -P 0 %d 4096", o.Size-8192), path)
	}
}

// What QEMU writes into an image of ours we read.
func TestOracleWritesIntoOurs(t *testing.T) {
	for _, fixed := range []bool{false, true} {
		path := create(t, vhdx.CreateOptions{Size: 40 * mib, BlockSize: 2 * mib, Fixed: fixed})
		out := ask(t, "qemu-io", "-f", "vhdx", "-c", "write -P 0xab 5M 3M", "-c", "write -P 0xcd 39M 1M", path)
		if strings.Contains(out, "failed") {
			t.Fatalf("qemu-io: %s", out)
		}
		raw := filepath.Join(t.TempDir(), "raw")
		want := make([]byte, 40*mib)
		copy(want[5*mib:], bytes.Repeat([]byte{0xab}, int(3*mib)))
		copy(want[39*mib:], bytes.Repeat([]byte{0xcd}, int(mib)))
		if err := os.WriteFile(raw, want, 0o600); err != nil {
			t.Fatal(err)
		}
		im := open(t, path, vhdx.OpenOptions{ReadOnly: true})
		sameAsRaw(t, im, raw)
		closeImage(t, im)
		im = open(t, path, vhdx.OpenOptions{})
		if _, err := im.WriteAt(want[5*mib:6*mib], 20*mib); err != nil {
			t.Fatal(err)
		}
		closeImage(t, im)
		copy(want[20*mib:], want[5*mib:6*mib])
		if err := os.WriteFile(raw, want, 0o600); err != nil {
			t.Fatal(err)
		}
		askCheck(t, path)
		askCompare(t, path, raw)
	}
}
