package guest

import (
	"context"
	"os"
	"os/exec"
	"testing"
	"time"
)

// TestPool runs the tests of pkg/pool with all of their pools on NFS.
func TestPool(t *testing.T) {
	b := export(t, newBacking(t, "ext4", 2<<30))
	share := b.mount(t, nfsOptions)
	sh(t, "mount --bind %s /dev/shm", share) // where most of them are
	atEnd(t, "umount /dev/shm")
	testsOf(t, share, "pool.test", "Attach|Capacity|Delete|Group|Import|List|Look|Modify|Resize|Snapshot|Volume|Peers|Watch")
}

// TestGrowthUnderLoad runs what the kernel of most machines that test hides:
// from Linux 6.16 on loop itself asks for its file's size.
func TestGrowthUnderLoad(t *testing.T) {
	testsOf(t, "/tmp", "fuseloop.test", "^TestConformance$/././^ResizeUnderLoad$")
}

// testsOf runs tests of another package, with a directory for what they make.
func testsOf(t *testing.T, dir, name, run string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, bins+name, "-test.short", "-test.run="+run)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	t.Logf("%s", out)
}
