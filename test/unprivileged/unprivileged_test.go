// Package unprivileged runs the controller as the user of the image and of
// deploy/kubernetes, on one pool with a node plugin that is root.
package unprivileged

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/test/plugin"
)

// user is the user and group of the image; see Dockerfile.
const user = 65532

func TestControllerNeedsNoRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: the node plugin mounts, and the controller becomes somebody else")
	}
	dir := sharedDir(t)
	binary := filepath.Join(dir, "vhdx-csi")
	if err := plugin.Build(dir, "vhdx-csi"); err != nil {
		t.Fatal(err)
	}
	pool := makePool(t, dir)
	asUser := filepath.Join(dir, "as-user")
	script := fmt.Sprintf("#!/bin/sh\nexec setpriv --reuid=%d --regid=%d --clear-groups --no-new-privs --inh-caps=-all %s \"$@\"\n", user, user, binary)
	if err := os.WriteFile(asUser, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	controller := start(t, plugin.Options{Binary: asUser, Dir: ownDir(t, dir, "controller", user), Mode: "controller", Pool: pool})
	node := start(t, plugin.Options{Binary: binary, Dir: ownDir(t, dir, "node", 0), Mode: "node", Pool: pool})

	ctx := t.Context()
	v, err := controller.Create(ctx, "volume", 1<<30, plugin.Filesystem("ext4"), nil)
	if err != nil {
		t.Fatal(err)
	}
	here := v.On(node)
	// Twice: the second round meets records that root has written.
	for range 2 {
		must(t, v.Attach(ctx))
		must(t, here.Stage(ctx))
		must(t, here.Publish(ctx))
		must(t, here.Unpublish(ctx))
		must(t, here.Unstage(ctx))
		must(t, v.Detach(ctx))
	}
	must(t, v.Delete(ctx))
	must(t, node.Stop(ctx))
	must(t, controller.Stop(ctx))
}

// sharedDir is a temporary directory that other users may enter.
func sharedDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vhdx-unprivileged-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plugin.Clean(context.Background(), dir); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	must(t, os.Chmod(dir, 0o755))
	return dir
}

// makePool makes the pool's directory as deploy/kubernetes and the how-to for
// NFS say: of the user's group, which the set-group-id bit hands down.
func makePool(t *testing.T, dir string) string {
	t.Helper()
	pool := ownDir(t, dir, "pool", user)
	must(t, os.Chmod(pool, 0o770|os.ModeSetgid))
	return pool
}

func ownDir(t *testing.T, dir, name string, owner int) string {
	t.Helper()
	path := filepath.Join(dir, name)
	must(t, os.Mkdir(path, 0o755))
	must(t, os.Chown(path, owner, owner))
	return path
}

func start(t *testing.T, o plugin.Options) *plugin.Process {
	t.Helper()
	p, err := plugin.Start(t.Context(), o)
	if err != nil {
		t.Fatalf("start %s: %v\n%s", o.Mode, err, plugin.Tail(o.Dir, 20))
	}
	t.Cleanup(p.Kill)
	return p
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
