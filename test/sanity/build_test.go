// Package sanity tests the plugin from outside: csi-sanity and the life of the
// process, with the real binary, real pools, real devices and real mounts.
package sanity

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/test/plugin"
)

// binary builds the plugin once, with the race detector if this test has it.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "vhdx-csi-build-")
	if err != nil {
		return "", err
	}
	builds = dir
	return filepath.Join(dir, "vhdx-csi"), plugin.Build(dir, "vhdx-csi")
})

var builds string // to be removed at the end

func TestMain(m *testing.M) {
	code := m.Run()
	if builds != "" {
		_ = os.RemoveAll(builds)
	}
	os.Exit(code)
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts filesystems and makes loop devices")
	}
	if runtime.GOOS != "linux" {
		t.Skip("needs Linux")
	}
}

// home makes a directory for a plugin. Its path is short, for the socket. When
// the test ends, whatever the plugin left on the machine is removed; the test
// has failed then, unless it was failing anyway.
func home(t *testing.T) string {
	t.Helper()
	needRoot(t)
	dir, err := os.MkdirTemp("", "vhdx-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		left, err := plugin.Leftovers(dir)
		if err != nil || len(left) > 0 {
			t.Errorf("left on the machine (%v):\n%s", err, strings.Join(left, "\n"))
		}
		if t.Failed() {
			t.Logf("the plugin's log ends:\n%s", plugin.Tail(dir, 20000))
		}
		if err := plugin.Clean(context.WithoutCancel(t.Context()), dir); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	return dir
}

// start starts a plugin in dir and stops it when the test ends.
func start(t *testing.T, dir string, args ...string) *plugin.Process {
	t.Helper()
	bin, err := binary()
	if err != nil {
		t.Fatalf("build the plugin: %v", err)
	}
	p, err := plugin.Start(t.Context(), plugin.Options{Binary: bin, Dir: dir, Args: args})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		select {
		case <-p.Done():
			return // the test ended it, and knows how
		default:
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := p.Stop(ctx); err != nil {
			t.Errorf("stop the plugin: %v", err)
			p.Kill()
		}
		if text, err := os.ReadFile(plugin.LogFile(dir)); err == nil && strings.Contains(string(text), "DATA RACE") {
			t.Errorf("the race detector found something:\n%s", plugin.Tail(dir, 20000))
		}
	})
	return p
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

// qemuCheck has QEMU look at an image that must be clean.
func qemuCheck(t *testing.T, image string) {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Fatal("qemu-img is not installed: run make deps")
	}
	if out, err := exec.Command("qemu-img", "check", "-f", "vhdx", image).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img check %s: %v\n%s", image, err, out)
	}
}
