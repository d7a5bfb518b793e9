package fuseloop

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/helper"
	"github.com/csi-vhdx/csi-driver-vhdx/internal/loopdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev/devtest"
)

// The step at which a server in these tests is killed, in it or in its child.
const killVariable = "FUSELOOP_TEST_KILL_AT"

// killAtStep makes this process, or its parent if it is a helper, die when it
// reaches the step. A path instead of a step is of a file to make when the
// device is about to be settled.
func killAtStep(want string) {
	reached = func(step string) {
		if filepath.IsAbs(want) && step == stepKept {
			_ = os.WriteFile(want, nil, 0o600)
		}
		if step != want {
			return
		}
		victim := os.Getpid()
		if os.Args[0] == "vhdx-helper" {
			victim = os.Getppid()
		}
		_ = unix.Kill(victim, unix.SIGKILL)
		select {} // a helper dies with its parent
	}
}

// dyingServer starts a server that attaches id, with the lock on orphans in
// every helper, and returns its device if it got that far before it died.
func dyingServer(t *testing.T, id, step string, orphans *os.File, life time.Duration) (dev string) {
	t.Helper()
	server := exec.Command("/proc/self/exe")
	server.Env = append(os.Environ(), serveVariable+"="+id, holdVariable+"=3", killVariable+"="+step)
	server.ExtraFiles = []*os.File{orphans}
	stdin, err := server.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	out, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	if life > 0 {
		time.Sleep(life)
		_ = server.Process.Kill()
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	_, _ = io.Copy(io.Discard, out)
	_ = server.Wait()
	return strings.TrimSpace(line)
}

// holdVariable is the number of a descriptor to give to every helper.
const holdVariable = "FUSELOOP_TEST_HOLD"

func holding(ctx context.Context) context.Context {
	if os.Getenv(holdVariable) == "" {
		return ctx
	}
	return helper.Hold(ctx, os.NewFile(3, "orphans"))
}

// waitOrphans waits until no helper of a dead server is left.
func waitOrphans(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for range 3000 {
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("a helper outlives its dead server")
}

// orphanLock makes a lock as pkg/node has one.
func orphanLock(t *testing.T) (open func() *os.File, path string) {
	path = filepath.Join(t.TempDir(), "helpers")
	return func() *os.File {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH); err != nil {
			t.Fatal(err)
		}
		return f
	}, path
}

// A server that dies during an attach, at whatever step of it or of its helper,
// leaves nothing once its helper is gone: nobody has to come and clean up. Only
// when the device has been kept for a successor may it stay, for Teardown.
func TestDeathDuringAttachLeavesNothing(t *testing.T) {
	needRoot(t)
	open, path := orphanLock(t)
	steps := []string{
		stepPreflight, stepOpenFuse, stepEngine, stepNegotiate, stepFsopen, stepFsconfig,
		stepFsmount, stepOpen, stepConfigured, stepKept,
	}
	for _, step := range steps {
		t.Run(step, func(t *testing.T) {
			orphans := open()
			dev := dyingServer(t, t.Name(), step, orphans, 0)
			_ = orphans.Close()
			if dev != "" {
				t.Fatalf("it did not die, and made %s", dev)
			}
			waitOrphans(t, path)
			leavesNothing(t, t.Name())
		})
	}
	rounds := 30
	if testing.Short() {
		rounds = 6
	}
	made := 0
	for i := range rounds {
		id := fmt.Sprintf("%s-%d", t.Name(), i)
		orphans, settling := open(), filepath.Join(t.TempDir(), "settling")
		_ = dyingServer(t, id, settling, orphans, time.Millisecond+time.Duration(rand.Int64N(int64(25*time.Millisecond))))
		_ = orphans.Close()
		waitOrphans(t, path)
		if _, err := os.Stat(settling); err == nil {
			made++ // or nearly so
			if err := New(Options{}).Teardown(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		leavesNothing(t, id)
	}
	t.Logf("%d of %d servers had as good as made their device when they were killed", made, rounds)
}

func leavesNothing(t *testing.T, id string) {
	t.Helper()
	found, err := loopdev.Find(tagOf(id))
	if err != nil {
		t.Fatal(err)
	}
	for _, dev := range found {
		leaving := loopdev.Leaving(dev.Number)
		if err := New(Options{}).Teardown(t.Context(), id); err != nil {
			t.Error(err)
		}
		t.Fatalf("%s is left, leaving: %v", loopdev.Path(dev.Number), leaving)
	}
}

// A device that a detach was cut off from goes with its last user. Who resumes
// it lets it stay.
func TestResumeLetsStay(t *testing.T) {
	needRoot(t)
	var meta []byte
	var held *os.File
	c := blockdev.Config{ID: t.Name(), Image: devtest.NewMemImage(8<<20, 512), Keep: func(m []byte, files ...*os.File) (err error) {
		meta = m
		held, err = dup(files[0])
		return err
	}}
	a := New(Options{})
	d, err := a.Attach(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	user, err := os.Open(d.Path())
	if err != nil {
		t.Fatal(err)
	}
	n, err := loopdev.Number(d.Path())
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlLoopSetStatus64(int(user.Fd()), leavingInfo(tagOf(c.ID))); err != nil {
		t.Fatal(err)
	}
	if !loopdev.Leaving(n) {
		t.Fatal("the device is not on its way out")
	}
	if err := d.(blockdev.Releaser).Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	d, err = a.Resume(t.Context(), c, meta, []*os.File{held})
	if err != nil {
		t.Fatal(err)
	}
	_ = user.Close()
	if loopdev.Leaving(n) {
		t.Fatal("the device still goes when it is closed")
	}
	readable(t, d.Path())
	if err := d.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func leavingInfo(tag string) *unix.LoopInfo64 {
	i := &unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}
	copy(i.File_name[:len(i.File_name)-1], tag)
	return i
}

// readable reads a device from another process.
func readable(t *testing.T, dev string) {
	t.Helper()
	if out, err := exec.Command("dd", "if="+dev, "of=/dev/null", "bs=1M").CombinedOutput(); err != nil {
		t.Fatalf("%s does not work: %v: %s", dev, err, out)
	}
}
