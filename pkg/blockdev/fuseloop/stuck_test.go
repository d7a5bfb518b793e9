package fuseloop

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/helper"
	"github.com/csi-vhdx/csi-driver-vhdx/internal/loopdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev/devtest"
)

// works attaches and detaches a volume with what another one has to wait behind.
func works(t *testing.T, a *Attacher, id string) {
	t.Helper()
	d, err := a.Attach(t.Context(), blockdev.Config{ID: id, Image: devtest.NewMemImage(8<<20, 512)})
	if err != nil {
		t.Fatalf("another volume: %v", err)
	}
	if err := d.Detach(t.Context()); err != nil {
		t.Fatalf("another volume: %v", err)
	}
}

// isStuck checks that err reports a child abandoned in the kernel.
func isStuck(t *testing.T, err error) *helper.StuckError {
	t.Helper()
	stuck, ok := errors.AsType[*helper.StuckError](err)
	if !ok || !errors.Is(err, helper.ErrStuck) || !strings.Contains(stuck.Where, "D (disk sleep)") {
		t.Fatalf("no child is reported as stuck: %v", err)
	}
	return stuck
}

// The server of a device is frozen: who asks for it is killed, and other
// volumes do not notice. (That it never gets stuck here is the kernel's doing: a
// request that nobody has read can be taken back.)
func TestHelperBehindFrozenServer(t *testing.T) {
	_, server, stdin := elsewhere(t, t.Name())
	if err := server.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	goOn := sync.OnceFunc(func() { _ = server.Process.Signal(unix.SIGCONT) })
	t.Cleanup(goOn)
	a := New(Options{})
	if err := a.Teardown(t.Context(), t.Name()); !errors.Is(err, blockdev.ErrBusy) || !errors.Is(err, helper.ErrDeadline) {
		t.Fatalf("Teardown of a device whose server is frozen: %v", err)
	}
	works(t, a, t.Name()+"-other")
	goOn()
	if err := a.Teardown(t.Context(), t.Name()); !errors.Is(err, blockdev.ErrBusy) || errors.Is(err, helper.ErrDeadline) {
		t.Fatalf("Teardown once the server goes on: %v", err)
	}
	_ = stdin.Close()
	if err := server.Wait(); err != nil {
		t.Fatal(err)
	}
}

// I-FL-8: the storage of a volume hangs in a flush: Detach and Resize report the child
// that waits for it, and end with their deadline. Once it goes on the device is
// there as it was, and can be detached.
func TestHelperBehindHangingStorage(t *testing.T) {
	needRoot(t)
	im := devtest.NewMemImage(8<<20, 512)
	gate, hangs := make(chan struct{}), make(chan struct{}, 16)
	a := New(Options{})
	d, err := a.Attach(t.Context(), blockdev.Config{ID: t.Name(), Image: im})
	if err != nil {
		t.Fatal(err)
	}
	im.Hook(func(op devtest.Op) error {
		if op.Kind == "flush" {
			hangs <- struct{}{}
			<-gate
		}
		return nil
	})
	goOn := sync.OnceFunc(func() { close(gate) })
	t.Cleanup(goOn)
	// Dirty pages, so that there is something to sync.
	if out, err := exec.Command("dd", "if=/dev/zero", "of="+d.Path(), "bs=64k", "count=4").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	stuck := isStuck(t, d.Detach(ctx))
	<-hangs
	for _, again := range []func(context.Context) error{d.Detach, d.Resize} {
		if err := again(t.Context()); isStuck(t, err).PID != stuck.PID {
			t.Fatalf("another child is left behind: %v", err)
		}
	}
	if err := d.(blockdev.Watched).Alive(); err != nil {
		t.Fatalf("storage that hangs is taken for a hang of the server: %v", err)
	}
	works(t, a, t.Name()+"-other")
	goOn()
	<-stuck.Gone
	if err := d.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	if found, err := loopdev.Find(tagOf(t.Name())); err != nil || len(found) != 0 {
		t.Fatalf("left: %+v, %v", found, err)
	}
}

// The storage of a volume hangs in a flush: its device is made all the same, for
// LOOP_CONFIGURE, which syncs, holds a lock that every other attach waits for.
func TestMakerBehindHangingStorage(t *testing.T) {
	needRoot(t)
	im := devtest.NewMemImage(8<<20, 512)
	gate := make(chan struct{})
	im.Hook(func(op devtest.Op) error {
		if op.Kind == "flush" {
			<-gate
		}
		return nil
	})
	goOn := sync.OnceFunc(func() { close(gate) })
	t.Cleanup(goOn)
	a := New(Options{})
	d, err := a.Attach(t.Context(), blockdev.Config{ID: t.Name(), Image: im})
	if err != nil {
		t.Fatal(err)
	}
	works(t, a, t.Name()+"-other")
	goOn()
	before := im.Flushed()
	if out, err := exec.Command("dd", "if=/dev/zero", "of="+d.Path(), "bs=64k", "count=4", "conv=fsync").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if im.Flushed() == before {
		t.Fatal("a flush once the device is made does not come to the image")
	}
	if err := d.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// The server of a device that is to be made does not answer: the child is left
// behind until the connection ends, which takes it along, and nothing is left.
func TestMakerBehindHangingServer(t *testing.T) {
	needRoot(t)
	im := devtest.NewMemImage(8<<20, 512)
	gate := make(chan struct{})
	a := New(Options{})
	hanging := &sizeGate{MemImage: im, gate: gate}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := a.Attach(ctx, blockdev.Config{ID: t.Name(), Image: hanging})
		ended <- err
	}()
	<-ctx.Done()
	works(t, a, t.Name()+"-other")
	close(gate)
	if err := <-ended; !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	if found, err := loopdev.Find(tagOf(t.Name())); err != nil || len(found) != 0 {
		t.Fatalf("left: %+v, %v", found, err)
	}
	works(t, a, t.Name())
}

// sizeGate answers nothing about its size before gate is closed, once it is
// attached.
type sizeGate struct {
	*devtest.MemImage
	gate  chan struct{}
	asked sync.Map
}

func (im *sizeGate) Size() int64 {
	if _, second := im.asked.LoadOrStore("size", true); second {
		<-im.gate
	}
	return im.MemImage.Size()
}
