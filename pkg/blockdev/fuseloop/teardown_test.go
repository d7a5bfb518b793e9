package fuseloop

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/helper"
	"github.com/csi-vhdx/csi-driver-vhdx/internal/loopdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev/devtest"
)

// serveElsewhere is what a server process does in these tests: it attaches a
// volume, says where, and serves until its input ends.
func serveElsewhere(id string) {
	helper.RunIfHelper(Commands()...)
	if how := os.Getenv(crashVariable); how != "" {
		crashServer(id, how)
	}
	if path := os.Getenv(lifeVariable); path != "" {
		serveLife(id, path)
	}
	d, err := New(Options{}).Attach(holding(context.Background()), blockdev.Config{ID: id, Image: devtest.NewMemImage(64<<20, 512)})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(d.Path())
	_, _ = io.Copy(io.Discard, os.Stdin)
	if err := d.Detach(context.Background()); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

const serveVariable = "FUSELOOP_TEST_SERVE"

// elsewhere starts a server process and returns its device.
func elsewhere(t *testing.T, id string) (dev string, server *exec.Cmd, stdin io.Closer) {
	t.Helper()
	needRoot(t)
	server = exec.Command("/proc/self/exe")
	server.Env = append(os.Environ(), serveVariable+"="+id)
	in, err := server.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := New(Options{}).Teardown(ctx, id); err != nil {
			t.Error(err)
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "/dev/loop") {
		t.Fatalf("the server says %q, %v", line, err)
	}
	return strings.TrimSpace(line), server, in
}

// A device that another process serves is not touched, whatever asks for it.
func TestTeardownLeavesLiveServerAlone(t *testing.T) {
	dev, server, stdin := elsewhere(t, t.Name())
	a := New(Options{})
	for range 3 {
		if err := a.Teardown(t.Context(), t.Name()); !errors.Is(err, blockdev.ErrBusy) {
			t.Fatalf("Teardown of a device served elsewhere: %v", err)
		}
	}
	if _, err := a.Attach(t.Context(), blockdev.Config{ID: t.Name(), Image: devtest.NewMemImage(1<<20, 512)}); !errors.Is(err, blockdev.ErrBusy) {
		t.Fatalf("Attach of a volume attached elsewhere: %v", err)
	}
	if data, err := os.ReadFile(dev); err != nil || len(data) != 64<<20 {
		t.Fatalf("the device does not work any more: %d bytes, %v", len(data), err)
	}
	_ = stdin.Close()
	if err := server.Wait(); err != nil {
		t.Fatal(err)
	}
}

// A server that is stopped is alive: it may go on at any time.
func TestTeardownLeavesStoppedServerAlone(t *testing.T) {
	_, server, _ := elsewhere(t, t.Name())
	if err := server.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	err := New(Options{}).Teardown(t.Context(), t.Name())
	if serr := server.Process.Signal(unix.SIGCONT); serr != nil {
		t.Fatal(serr)
	}
	if !errors.Is(err, blockdev.ErrBusy) {
		t.Fatalf("Teardown of a device whose server is stopped: %v", err)
	}
	if found, _ := loopdev.Find(tagOf(t.Name())); len(found) != 1 {
		t.Fatalf("devices: %+v", found)
	}
}

// The device of a killed server goes, unless it is still mounted.
func TestTeardownAfterKill(t *testing.T) {
	dev, server, _ := elsewhere(t, t.Name())
	if out, err := exec.Command("mkfs.ext4", "-q", dev).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	dir := t.TempDir()
	if err := unix.Mount(dev, dir, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	mounted := true
	defer func() {
		if mounted {
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	}()
	if err := os.WriteFile(dir+"/f", make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := server.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = server.Wait()
	a := New(Options{})
	if _, err := a.Attach(t.Context(), blockdev.Config{ID: t.Name(), Image: devtest.NewMemImage(1<<20, 512)}); !errors.Is(err, blockdev.ErrBusy) {
		t.Fatalf("Attach beside a dead device: %v", err)
	}
	if err := a.Teardown(t.Context(), t.Name()); !errors.Is(err, blockdev.ErrBusy) {
		t.Fatalf("Teardown of a mounted dead device: %v", err)
	}
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	mounted = false
	if err := a.Teardown(t.Context(), t.Name()); err != nil {
		t.Fatal(err)
	}
	if found, _ := loopdev.Find(tagOf(t.Name())); len(found) != 0 {
		t.Fatalf("left: %+v", found)
	}
	d, err := a.Attach(t.Context(), blockdev.Config{ID: t.Name(), Image: devtest.NewMemImage(1<<20, 512)})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Somebody else removes the device: serving ends and says why, and the volume
// can be attached again.
func TestRemovedByOthers(t *testing.T) {
	needRoot(t)
	a := New(Options{})
	d, err := a.Attach(t.Context(), blockdev.Config{ID: t.Name(), Image: devtest.NewMemImage(8<<20, 512)})
	if err != nil {
		t.Fatal(err)
	}
	n, err := loopdev.Number(d.Path())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := loopdev.Detach(n, tagOf(t.Name())); err != nil {
		t.Fatal(err)
	}
	select {
	case <-d.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("serving goes on without a device")
	}
	if d.Err() == nil {
		t.Fatal("Err says nothing")
	}
	next, err := a.Attach(t.Context(), blockdev.Config{ID: t.Name(), Image: devtest.NewMemImage(8<<20, 512)})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Detach(t.Context()); err != nil {
		t.Fatalf("Detach of the old device: %v", err)
	}
	readable(t, next.Path()) // Detach of the old device has not taken the new one
	if err := next.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
}
