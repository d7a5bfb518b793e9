package vhdx_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

// qemuBlind are damages that QEMU does not look at: it passes what Check calls
// corrupt or leaking.
var qemuBlind = []string{
	"two blocks in one place", "four blocks in one place", "reserved bits", "reserved bits and a shared place", "a reserved state",
	"an unmapped block that remembers another's place", "an unmapped block that remembers a place beyond the file",
	"PARTIALLY_PRESENT without a parent", "leaked space inside", "leaked space at the end",
	"a log GUID without a log", // clean to QEMU, which cannot write to it any more
	"a garbled table", "a block without a place",
	"a region beyond the file", "a log beyond the file", "a sequence number that overflows",
}

// qemuStrict are those it refuses and Check only warns of: it reads no second
// copy, and takes a last block that the file ends in for a truncated file.
var qemuStrict = []string{"one region table", "a block that the file ends in"}

// qemu-img check and Check agree on every damage, but for those lists; and it
// passes whatever Repair has made clean.
func TestOracleCheck(t *testing.T) {
	oracle(t, "qemu-img")
	for _, d := range damages {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			s := d.made(t)
			if d.dirty {
				return // it refuses to look
			}
			r, passed := check(t, s.File), qemuPasses(t, s.File)
			sound := !r.Corrupt() && r.Stopped == ""
			blind, strict := slices.Contains(qemuBlind, d.name), slices.Contains(qemuStrict, d.name)
			switch {
			case blind && (!passed || sound && r.Counts[vhdx.SeverityLeak] == 0), strict && (passed || !sound):
				t.Errorf("it need not be in the lists of what QEMU sees otherwise")
			case passed && (!sound || r.Counts[vhdx.SeverityLeak] > 0) && !blind:
				t.Errorf("QEMU passes what Check does not: %v", r.Findings)
			case !passed && sound && !strict:
				t.Errorf("QEMU refuses what Check passes: %v", r.Findings)
			}
			for range 2 {
				repair(t, s.File, vhdx.RepairOptions{})
			}
			if r := check(t, s.File); r.Clean() && !qemuPasses(t, s.File) {
				t.Errorf("QEMU refuses what was repaired, %v", r.Findings)
			}
		})
	}
}

// qemuPasses asks qemu-img check.
func qemuPasses(t *testing.T, f *vhdxtest.File) bool {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.vhdx")
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	n, err := f.Size()
	if err == nil {
		err = out.Truncate(n)
	}
	if err == nil {
		err = f.NonZero(0, n, func(off int64, data []byte) error {
			_, err := out.WriteAt(data[:min(int64(len(data)), n-off)], off)
			return err
		})
	}
	if err := errors.Join(err, out.Close()); err != nil {
		t.Fatal(err)
	}
	said, err := exec.Command("qemu-img", "check", "-f", "vhdx", path).CombinedOutput()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatal(err)
	}
	t.Logf("%s%v", said, err)
	return err == nil
}
