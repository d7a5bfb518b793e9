package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control/wire"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/driver"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// follower can do one thing.
type follower struct {
	control.Holder
	err error
}

func (f *follower) Follow(context.Context, string) error { return f.err }

func openShared(t *testing.T, dir, holder string) *pool.Set {
	t.Helper()
	p, err := pool.Open(pool.Options{Name: "default", Dir: dir, Overcommit: 1000, Holder: holder})
	if err != nil {
		t.Fatal(err)
	}
	s, err := pool.NewSet(p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// reach asks until the controller is known in the pool.
func reach(t *testing.T, ask func() error) error {
	t.Helper()
	for {
		err := ask()
		if !errors.Is(err, control.ErrUnreachable) || t.Context().Err() != nil {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// TestControllerAsksNode: two processes' worth of the plugin on one pool, which
// find each other without being told anything but a directory.
func TestControllerAsksNode(t *testing.T) {
	dir := t.TempDir()
	atNode, atController := openShared(t, dir, "n1"), openShared(t, dir, "controller-0")
	ctx := t.Context()
	n := &options{mode: modeNode, nodeID: "n1", controlAddress: "127.0.0.1:0"}
	h := &follower{}
	deaf, err := n.answerControllers(ctx, atNode, h, pool.Node{ID: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	c := &options{mode: modeController}
	nodes, err := c.newAsker(ctx, atController, nil, true)
	if err != nil {
		t.Fatal(err)
	}
	v, err := atController.CreateVolume(ctx, pool.Spec{Name: "v", Size: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	if err := nodes.Follow(ctx, v.ID); !errors.Is(err, control.ErrNotHeld) {
		t.Fatalf("closed: %v", err)
	}
	im, err := atNode.OpenImage(ctx, v.ID, false, vhdx.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if err := reach(t, func() error { return nodes.Follow(ctx, v.ID) }); err != nil {
		t.Fatalf("open on n1: %v", err)
	}
	h.err = pool.ErrNoSpace
	far, ok := errors.AsType[*wire.Error](nodes.Follow(ctx, v.ID))
	if !ok || far.Code != codes.ResourceExhausted {
		t.Fatalf("the node's error: %v", far)
	}
	nodes.stop()
	left, err := os.ReadDir(filepath.Join(dir, "controllers"))
	if err != nil || len(left) > 0 {
		t.Fatalf("a controller that has ended is still trusted: %v, %v", left, err)
	}
	if err := deaf(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestAloneAsksItself: in the mode all with local pools there is no network.
func TestAloneAsksItself(t *testing.T) {
	o := &options{mode: modeAll, nodeID: "n1"}
	if o.networked([]driver.Pool{{Name: "default", OnlyOn: "n1"}}) || !o.networked([]driver.Pool{{OnlyOn: "n1"}, {}}) {
		t.Fatal("networked")
	}
	dir := t.TempDir()
	set := openShared(t, dir, "n1")
	a, err := o.newAsker(t.Context(), set, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	defer a.stop()
	a.Node, a.Local = "n1", &follower{}
	v, err := set.CreateVolume(t.Context(), pool.Spec{Name: "v", Size: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	im, err := set.OpenImage(t.Context(), v.ID, false, vhdx.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if err := a.Follow(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "controllers")); err != nil || len(left) > 0 {
		t.Fatalf("%v, %v", left, err)
	}
}

// TestAddressTaken: a node that cannot listen registers all the same (I-CTL-7).
func TestAddressTaken(t *testing.T) {
	set := openShared(t, t.TempDir(), "n1")
	o := &options{mode: modeNode, nodeID: "n1", controlAddress: "192.0.2.1:9811"} // of no machine
	deaf, err := o.answerControllers(t.Context(), set, &follower{}, pool.Node{ID: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	n, err := set.Node(t.Context(), "n1")
	if err != nil || len(n.Endpoints) > 0 {
		t.Fatalf("%+v, %v", n, err)
	}
	if err := deaf(t.Context()); err != nil {
		t.Fatal(err)
	}
}
