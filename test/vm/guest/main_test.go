// Package guest is what `make vm` runs in its virtual machine: the real plugin,
// with its pool on real NFS and SMB mounts whose servers fail, fill up and
// come back.
package guest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

const (
	// bins has the plugin and the other test binaries.
	bins = "/bins/"
	// disk is what the exports lie on.
	disk = "/dev/ubdb"

	kib = 1 << 10
	mib = 1 << 20
)

// TestMain runs nothing outside of the virtual machine: these tests start
// servers and repartition a disk.
func TestMain(m *testing.M) {
	if os.Getenv("VHDX_VM") == "" {
		fmt.Fprintln(os.Stdout, "these tests run in a virtual machine: make vm")
		os.Exit(0)
	}
	code := m.Run()
	if code != 0 {
		out, _ := exec.Command("dmesg").Output() // for whoever looks into it
		fmt.Fprintf(os.Stdout, "the kernel's log ends:\n%s", out[max(0, len(out)-6000):])
	}
	os.Exit(code)
}

// sh runs a script of the shell, which must succeed.
func sh(t *testing.T, script string, args ...any) string {
	t.Helper()
	out, err := shell(t.Context(), fmt.Sprintf(script, args...))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func shell(ctx context.Context, script string) (string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-euc", script)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", script, err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// atEnd runs a script when the test ends.
func atEnd(t *testing.T, script string, args ...any) {
	t.Helper()
	t.Cleanup(func() {
		if _, err := shell(context.Background(), fmt.Sprintf(script, args...)); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
}

// must fails the test at the first error.
func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// patience bounds what is waited for. The machine may be busy.
const patience = 3 * time.Minute

// eventually waits until f says yes.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for until := time.Now().Add(patience); !f(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}
