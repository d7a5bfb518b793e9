package guest

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-vhdx/csi-driver-vhdx/test/plugin"
)

// start starts a plugin whose pool is directory pool of a share. Everything
// else of it is on the node.
func start(t *testing.T, node, share string, args ...string) *plugin.Process {
	t.Helper()
	dir, err := os.MkdirTemp("", node+"-")
	must(t, err)
	pool := filepath.Join(share, "pool")
	must(t, os.MkdirAll(pool, 0o700))
	p, err := plugin.Start(t.Context(), plugin.Options{Binary: bins + "vhdx-csi", Dir: dir, Mode: "all", Pool: pool, Node: node, Args: args})
	must(t, err)
	t.Cleanup(func() { end(t, p) })
	return p
}

// end stops a plugin, and fails the test if that leaves anything behind.
func end(t *testing.T, p *plugin.Process) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if t.Failed() {
		t.Logf("the log of %s ends:\n%s", p.Dir, plugin.Tail(p.Dir, 6000))
		p.CutPower() // nothing waits for it then
	} else if err := p.Stop(ctx); err != nil {
		t.Errorf("stop the plugin: %v", err)
	}
	if err := plugin.Clean(ctx, p.Dir); err != nil {
		t.Errorf("clean up: %v", err)
	}
}

// volume creates a volume and brings it up on its plugin's node.
func volume(t *testing.T, p *plugin.Process, name string, size int64, c *csi.VolumeCapability) *plugin.Volume {
	t.Helper()
	v, err := p.Create(t.Context(), name, size, c, map[string]string{"blockSize": "1Mi"})
	must(t, err, v.Up(t.Context()))
	return v
}

// gone takes a volume down and deletes it.
func gone(t *testing.T, v *plugin.Volume) {
	t.Helper()
	must(t, v.Down(t.Context()), v.Delete(t.Context()))
}

// killWorker kills the process that serves the volumes, and waits for the next.
func killWorker(t *testing.T, p *plugin.Process) {
	t.Helper()
	pid := shootWorker(t, p)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := p.AwaitChild(ctx, plugin.Worker, pid)
	must(t, err, p.Await(ctx))
}

// shootWorker only kills it.
func shootWorker(t *testing.T, p *plugin.Process) (pid int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	pid, err := p.AwaitChild(ctx, plugin.Worker)
	must(t, err, syscall.Kill(pid, syscall.SIGKILL))
	return pid
}

// metricsAddress is where a plugin of TestShareFull says what is wrong.
const metricsAddress = "127.0.0.1:9809"

// paused waits until the plugin says that a volume waits for space.
func paused(t *testing.T) {
	t.Helper()
	eventually(t, "the volume is paused", func() bool {
		r, err := http.Get("http://" + metricsAddress + "/metrics")
		if err != nil {
			return false // a worker is just being replaced
		}
		defer r.Body.Close()
		text, err := io.ReadAll(r.Body)
		return err == nil && bytes.Contains(text, []byte(`vhdx_csi_volumes{state="paused"} 1`))
	})
}

// snapshot takes one, and waits until it can be used.
func snapshot(t *testing.T, p *plugin.Process, v *plugin.Volume, name string) *csi.Snapshot {
	t.Helper()
	var s *csi.Snapshot
	eventually(t, "snapshot "+name, func() bool {
		r, err := p.Controller().CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{SourceVolumeId: v.ID, Name: name})
		switch status.Code(err) {
		case codes.Aborted, codes.Unavailable: // come again
			return false
		}
		must(t, err)
		s = r.GetSnapshot()
		return s.GetReadyToUse()
	})
	return s
}

// restore makes a volume of a snapshot.
func restore(t *testing.T, p *plugin.Process, from *plugin.Volume, s *csi.Snapshot, name string) *plugin.Volume {
	t.Helper()
	r, err := p.Controller().CreateVolume(t.Context(), &csi.CreateVolumeRequest{
		Name: name, VolumeCapabilities: []*csi.VolumeCapability{from.Cap},
		CapacityRange: &csi.CapacityRange{RequiredBytes: s.GetSizeBytes()},
		VolumeContentSource: &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: s.GetSnapshotId()}}},
	})
	must(t, err)
	v := *from
	v.ID = r.GetVolume().GetVolumeId()
	base := filepath.Join(p.Dir, "kubelet", name)
	v.Staging, v.Target = filepath.Join(base, "globalmount"), filepath.Join(base, "mount")
	return &v
}

// later is time for a writer to do something.
func later() { time.Sleep(2 * time.Second) }
