package guest

import (
	"context"
	"os"
	"os/exec"
	"testing"
	"time"
)

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
