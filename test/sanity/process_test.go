package sanity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/driver"
	"github.com/csi-vhdx/csi-driver-vhdx/test/plugin"
)

// stop ends a plugin in order and demands exit code 0.
func stop(t *testing.T, p *plugin.Process) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := p.Stop(ctx); err != nil {
		t.Fatalf("stop: %v", err)
	}
}

// settled fails unless nothing of an earlier process is left, but for its
// keeper, which outlives it on purpose
func settled(t *testing.T, p *plugin.Process, except ...string) {
	t.Helper()
	left, err := plugin.Leftovers(p.Dir)
	must(t, err)
	except = append(except, fmt.Sprintf("process %d ", p.PID()))
	children, err := p.Children()
	must(t, err)
	for _, pid := range children {
		except = append(except, fmt.Sprintf("process %d ", pid))
	}
	for _, l := range left {
		if !strings.Contains(l, " keeper --keeper-socket=") && !slices.ContainsFunc(except, func(e string) bool { return strings.HasPrefix(l, e) }) {
			t.Errorf("left of the earlier process: %s", l)
		}
	}
}

func TestTermIdle(t *testing.T) {
	for _, sig := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		t.Run(sig.String(), func(t *testing.T) {
			dir := home(t)
			p := start(t, dir)
			must(t, p.Signal(sig))
			stop(t, p)
			if _, err := os.Stat(filepath.Join(dir, "csi.sock")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the socket: %v", err)
			}
		})
	}
}

// TestEndAndRestart ends the plugin in several ways while a volume is in use
// and a file in it open, and starts it again: nothing was unmounted, and what
// was written is there, synced or not.
func TestEndAndRestart(t *testing.T) {
	ends := map[string]func(*testing.T, *plugin.Process){
		"term": stop,
		"kill": func(_ *testing.T, p *plugin.Process) { p.Kill() },
	}
	for kind, c := range kinds {
		for how, end := range ends {
			t.Run(kind+"/"+how, func(t *testing.T) {
				ctx, dir := t.Context(), home(t)
				p := start(t, dir)
				v, err := p.Create(ctx, "life", 512*mib, c, nil)
				must(t, err, v.Up(ctx))
				want := write(t, v, "synced", 7*mib+4096)
				f, err := os.OpenFile(dataPath(v, "open"), os.O_RDWR|os.O_CREATE, 0o600)
				must(t, err)
				defer f.Close()
				later := []byte("written and not synced")
				_, err = f.WriteAt(later, 16*mib)
				must(t, err)
				end(t, p)

				p = start(t, dir)
				v = v.On(p)
				must(t, f.Sync())
				expect(t, v, "synced", want)
				got := make([]byte, len(later))
				if _, err := f.ReadAt(got, 16*mib); err != nil || !bytes.Equal(got, later) {
					t.Errorf("%q, %v", got, err)
				}
				must(t, f.Close())
				must(t, v.Up(ctx)) // as kubelet may
				expect(t, v, "synced", want)
				must(t, v.Down(ctx))
				image, err := plugin.Image(dir)
				must(t, err)
				qemuCheck(t, image)
			})
		}
	}
}

// TestPowerCut takes everything down at once while a volume is in use, its
// keeper too, and finds the synced data in the volume, staged anew.
func TestPowerCut(t *testing.T) {
	for kind, c := range kinds {
		t.Run(kind, func(t *testing.T) {
			ctx, dir := t.Context(), home(t)
			p := start(t, dir)
			v, err := p.Create(ctx, "life", 512*mib, c, nil)
			must(t, err, v.Up(ctx))
			want := write(t, v, "synced", 7*mib+4096)
			p.CutPower()

			p = start(t, dir)
			settled(t, p)
			if _, err := os.Lstat(v.Target); err == nil && c.GetBlock() == nil {
				if fs, err := os.ReadDir(v.Target); err != nil || len(fs) > 0 {
					t.Errorf("the target still shows something: %v, %v", fs, err)
				}
			}
			v = v.On(p)
			must(t, v.Up(ctx))
			expect(t, v, "synced", want)
			must(t, v.Down(ctx))
			image, err := plugin.Image(dir)
			must(t, err)
			qemuCheck(t, image)
		})
	}
}

// TestTermLeavesCleanImages: between two plugins every image is clean, also of
// a volume that is staged.
func TestTermLeavesCleanImages(t *testing.T) {
	ctx, dir := t.Context(), home(t)
	p := start(t, dir)
	v, err := p.Create(ctx, "life", 512*mib, kinds["ext4"], nil)
	must(t, err, v.Up(ctx))
	want := write(t, v, "synced", 7*mib+4096)
	must(t, v.Unpublish(ctx))
	stop(t, p)
	image, err := plugin.Image(dir)
	must(t, err)
	qemuCheck(t, image)

	p = start(t, dir)
	v = v.On(p)
	must(t, v.Publish(ctx)) // it is staged still
	expect(t, v, "synced", want)
	must(t, v.Down(ctx))
}

// TestKillWhileStaging kills the plugin at many moments of the way from
// nothing to a published volume. Whatever it left, a new one brings the volume
// up, formats it at most once, and keeps what was written.
func TestKillWhileStaging(t *testing.T) {
	ctx, dir := t.Context(), home(t)
	delays := []time.Duration{0, 5, 10, 20, 40, 60, 80, 100, 130, 160, 200, 300, 500}
	if testing.Short() {
		delays = []time.Duration{10, 60, 200}
	}
	p := start(t, dir)
	v, err := p.Create(ctx, "life", 512*mib, kinds["ext4"], nil)
	must(t, err)
	for _, d := range delays {
		v = v.On(p)
		up := make(chan error, 1)
		go func() { up <- v.Up(ctx) }()
		select {
		case err := <-up: // it was faster
			must(t, err)
		case <-time.After(d * time.Millisecond):
		}
		p.Kill()
		p = start(t, dir)
	}
	v = v.On(p)
	must(t, v.Up(ctx))
	want := write(t, v, "synced", mib)
	p.Kill()
	p = start(t, dir)
	v = v.On(p)
	must(t, v.Up(ctx))
	expect(t, v, "synced", want)
	must(t, v.Down(ctx))
	settled(t, p)
}

// TestCallerLeaves: a stage whose caller has no patience ends all the same,
// and the next call finds its result.
func TestCallerLeaves(t *testing.T) {
	ctx, dir := t.Context(), home(t)
	p := start(t, dir)
	v, err := p.Create(ctx, "life", 512*mib, kinds["ext4"], nil)
	must(t, err, v.Attach(ctx))
	short, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
	defer cancel()
	if err := v.Stage(short); err == nil {
		t.Log("staged within 5 ms")
	}
	must(t, v.Stage(ctx), v.Publish(ctx), v.Down(ctx)) // repeats on Aborted
}

// TestSecondPlugin: two processes never share a socket or a state directory.
func TestSecondPlugin(t *testing.T) {
	dir := home(t)
	p := start(t, dir)
	bin, err := binary()
	must(t, err)
	for name, args := range map[string][]string{
		"socket": {"--endpoint=" + plugin.Endpoint(dir), "--state-dir=" + filepath.Join(dir, "state2"), "--pool=default=" + plugin.PoolDir(dir)},
		"state":  {"--endpoint=unix://" + filepath.Join(dir, "2.sock"), "--state-dir=" + filepath.Join(dir, "state"), "--pool=default=" + plugin.PoolDir(dir)},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		out, err := exec.CommandContext(ctx, bin, append(args, "--node-id="+plugin.NodeID)...).CombinedOutput()
		cancel()
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 {
			t.Errorf("%s: a second plugin: %v\n%s", name, err, out)
		}
	}
	if _, err := p.Identity().Probe(t.Context(), &csi.ProbeRequest{}); err != nil {
		t.Errorf("the first one no longer answers: %v", err)
	}
}

// TestSplit: a controller and a node plugin in two processes, over one pool.
func TestSplit(t *testing.T) {
	ctx, ctlDir, nodeDir := t.Context(), home(t), home(t)
	bin, err := binary()
	must(t, err)
	begin := func(dir, mode string) *plugin.Process {
		p, err := plugin.Start(ctx, plugin.Options{Binary: bin, Dir: dir, Mode: mode, Pool: plugin.PoolDir(ctlDir)})
		must(t, err)
		t.Cleanup(func() {
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			if err := p.Stop(end); err != nil {
				t.Errorf("stop the %s: %v", mode, err)
				p.Kill()
			}
		})
		return p
	}
	ctl, node := begin(ctlDir, "controller"), begin(nodeDir, "node")
	v, err := ctl.Create(ctx, "life", 512*mib, kinds["ext4"], nil)
	must(t, err, v.Attach(ctx))
	n := v.On(node)
	must(t, n.Stage(ctx), n.Publish(ctx))
	want := write(t, n, "synced", mib)

	// Deleting and detaching a volume that is in use on another process is refused.
	if err := v.Delete(ctx); status.Code(errors.Unwrap(err)) != codes.FailedPrecondition {
		t.Errorf("delete in use: %v", err)
	}
	_, err = ctl.Controller().ControllerUnpublishVolume(ctx, &csi.ControllerUnpublishVolumeRequest{VolumeId: v.ID, NodeId: plugin.NodeID})
	if status.Code(err) != codes.Aborted {
		t.Errorf("detach in use: %v", err)
	}
	grow := &csi.CapacityRange{RequiredBytes: gib}
	if _, err := ctl.Controller().ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{VolumeId: v.ID, CapacityRange: grow}); err != nil {
		t.Fatal(err)
	}
	_, err = node.Node().NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{VolumeId: v.ID, VolumePath: n.Target, CapacityRange: grow})
	if plugin.GrowsExt4Online() == (status.Code(err) == codes.FailedPrecondition) {
		t.Fatalf("grow on the node: %v", err)
	}
	expect(t, n, "synced", want)
	must(t, n.Unpublish(ctx), n.Unstage(ctx), v.Detach(ctx), v.Delete(ctx))

	if _, err := ctl.Node().NodeGetInfo(ctx, &csi.NodeGetInfoRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("the controller serves the node service: %v", err)
	}
	if r, err := node.Node().NodeGetInfo(ctx, &csi.NodeGetInfoRequest{}); err != nil || r.GetAccessibleTopology().GetSegments()[driver.TopologyKey("default")] != "shared" {
		t.Errorf("the node of a shared pool: %v, %v", r, err)
	}
}

// TestTopologyOfLocalPool: a pool that only its node reaches says so.
func TestTopologyOfLocalPool(t *testing.T) {
	ctx, dir := t.Context(), home(t)
	p := start(t, dir)
	info, err := p.Node().NodeGetInfo(ctx, &csi.NodeGetInfoRequest{})
	if err != nil || info.GetAccessibleTopology().GetSegments()[driver.TopologyKey("default")] != plugin.NodeID {
		t.Fatalf("node info %v, %v", info, err)
	}
	req := &csi.CreateVolumeRequest{Name: "elsewhere", VolumeCapabilities: []*csi.VolumeCapability{plugin.Raw()},
		AccessibilityRequirements: &csi.TopologyRequirement{Requisite: []*csi.Topology{{Segments: map[string]string{driver.TopologyKey("default"): "node-2"}}}}}
	if _, err := p.Controller().CreateVolume(ctx, req); status.Code(err) != codes.ResourceExhausted {
		t.Fatalf("created where nobody reaches it: %v", err)
	}
}
