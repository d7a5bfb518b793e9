package fuseloop

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/helper"
	"github.com/csi-vhdx/csi-driver-vhdx/internal/loopdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev/devtest"
)

// I-DEV-4: an attach that fails at any step leaves no device, connection,
// descriptor, lock or goroutine, and the next one works.
func TestFailedAttachLeavesNothing(t *testing.T) {
	needRoot(t)
	startPoller(t)
	for _, noRing := range []bool{false, true} {
		for _, step := range []string{
			stepPreflight, stepOpenFuse, stepEngine, stepNegotiate, stepFsopen,
			stepFsconfig, stepFsmount, stepOpen, stepConfigured, stepKept, stepSettled, stepAttached,
		} {
			t.Run(step, func(t *testing.T) { failedAttach(t, Options{NoRing: noRing, fault: step}) })
		}
	}
}

func failedAttach(t *testing.T, o Options) {
	ignore := goleak.IgnoreCurrent()
	fds, conns := count(t, "/proc/self/fd"), fuseConnections(t)
	im := devtest.NewMemImage(8<<20, 512)
	id := t.Name()
	d, err := New(o).Attach(t.Context(), blockdev.Config{ID: id, Image: im})
	if err == nil {
		_ = d.Detach(t.Context())
		t.Fatal("the step did not fail")
	}
	if !errors.Is(err, errFault) {
		exit, ok := errors.AsType[*helper.ExitError](err)
		if !ok || exit.Code != 1 {
			t.Fatalf("failed by something else: %v", err)
		}
	}
	if found, err := loopdev.Find(tagOf(id)); err != nil || len(found) > 0 {
		t.Errorf("loop devices left: %+v, %v", found, err)
	}
	if after := count(t, "/proc/self/fd"); after > fds {
		t.Errorf("%d descriptors before, %d after", fds, after)
	}
	if after := fuseConnections(t); after > conns {
		t.Errorf("%d FUSE descriptors of this process before, %d after", conns, after)
	}
	goleak.VerifyNone(t, ignore)
	d, err = New(Options{}).Attach(t.Context(), blockdev.Config{ID: id, Image: im})
	if err != nil {
		t.Fatalf("the next attach: %v", err)
	}
	if err := d.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// startPoller has the Go runtime open the two descriptors that it keeps for ever
// from the first file on that can be polled.
func startPoller(t *testing.T) {
	t.Helper()
	r, w, err := os.Pipe()
	if err := errors.Join(err, r.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("block devices need root")
	}
}

func count(t *testing.T, dir string) int {
	t.Helper()
	ents, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(ents)
}

// fuseConnections counts open descriptors of /dev/fuse, which is what keeps a
// connection.
func fuseConnections(t *testing.T) (n int) {
	t.Helper()
	ents, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range ents {
		if to, _ := os.Readlink(filepath.Join("/proc/self/fd", e.Name())); to == "/dev/fuse" {
			n++
		}
	}
	return n
}

// The sysctls by which the kernel would abort the device of a server that
// pauses.
func TestRequestTimeoutIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := timeouts(dir); err != nil {
		t.Fatalf("a kernel without such limits: %v", err)
	}
	for _, name := range []string{"default_request_timeout", "max_request_timeout"} {
		path := filepath.Join(dir, name)
		for v, want := range map[string]error{"0\n": nil, "30\n": blockdev.ErrUnavailable} {
			if err := os.WriteFile(path, []byte(v), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := timeouts(dir); !errors.Is(err, want) {
				t.Errorf("%s = %q: %v", name, v, err)
			}
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}
