package guest

import (
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-vhdx/csi-driver-vhdx/test/plugin"
)

// TestNFS is the life of volumes on a real NFS mount.
func TestNFS(t *testing.T) {
	b := export(t, newBacking(t, "ext4", 1<<30))
	life(t, b.mount(t, nfsOptions))
}

// life has volumes of a pool on a share come, be used in every way, and go.
func life(t *testing.T, share string) {
	t.Helper()
	p := start(t, "node-1", share)
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) { lifeOf(t, p, fs) })
	}
	if log := plugin.Tail(p.Dir, 1<<30); strings.Contains(strings.ToLower(log), "memory reclaim may wait") {
		t.Errorf("a process with all rights is no server of block I/O (PR_SET_IO_FLUSHER):\n%s", log)
	}
}

func lifeOf(t *testing.T, p *plugin.Process, fs string) {
	ctx := t.Context()
	v := volume(t, p, "life-"+fs, 512*mib, plugin.Filesystem(fs))
	w := startWriter(t, v)
	w.goesOn(t, 10)
	for range 3 {
		killWorker(t, p)
		w.goesOn(t, 5)
	}
	taken := w.synced.Load()
	s := snapshot(t, p, v, "snap-"+fs)
	w.goesOn(t, 10)
	must(t, v.Expand(ctx, 768*mib))
	w.goesOn(t, 5)
	w.end(t)
	verify(t, v, w.synced.Load())
	usage, err := v.Stats(ctx)
	must(t, err)
	if usage.GetTotal() < 600*mib {
		t.Errorf("after it has grown to 768 MiB the filesystem has %d bytes", usage.GetTotal())
	}

	r := restore(t, p, v, s, "restored-"+fs)
	must(t, r.Up(ctx))
	verifySnapshot(t, r, taken)
	must(t, v.Down(ctx), v.Up(ctx))
	verify(t, v, w.synced.Load())
	gone(t, r)
	gone(t, v)
	_, err = p.Controller().DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: s.GetSnapshotId()})
	must(t, err)
}
