package guest

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/test/plugin"
)

// TestServerAway takes the NFS server away under a writing pod, and with it
// the client's locks, which it takes back when the server is there again.
func TestServerAway(t *testing.T) {
	b := export(t, newBacking(t, "ext4", 1<<30))
	p := start(t, "node-1", b.mount(t, nfsOptions))
	v := volume(t, p, "away", 512*mib, plugin.Filesystem("ext4"))
	w := startWriter(t, v)
	w.goesOn(t, 5)
	sh(t, nfsdDown)
	w.stands(t)
	shootWorker(t, p)
	w.stands(t)
	sh(t, nfsdUp)
	w.goesOn(t, 5)
	must(t, p.Await(t.Context()))
	w.end(t)
	verify(t, v, w.synced.Load())
	gone(t, v)
}

// TestShareFull: a full share is a pause. Nothing fails, and all goes on when
// there is space. The only quotas of this kernel are those of Btrfs, where the
// log itself may get none (docs/explanation/node.md).
func TestShareFull(t *testing.T) {
	b := newBacking(t, "ext4", 192*mib)
	// What is in the way, and taken out of it on the server.
	sh(t, "dd if=/dev/urandom of=%s/ballast bs=1M count=110 conv=fsync", b.dir)
	share := export(t, b).mount(t, nfsOptions)
	p := start(t, "node-1", share, "--metrics-address="+metricsAddress)
	v := volume(t, p, "full", 512*mib, plugin.Filesystem("ext4"))
	w := startWriter(t, v)
	w.goesOn(t, 5)
	filled := make(chan error, 1)
	more := filepath.Join(v.Target, "more")
	go func() { filled <- fill(more) }()
	paused(t)
	killWorker(t, p)
	paused(t)
	sh(t, "rm %s/ballast; sync", b.dir)
	must(t, <-filled)
	w.goesOn(t, 5)
	w.end(t)
	verify(t, v, w.synced.Load())
	must(t, v.Down(t.Context()), v.Up(t.Context()))
	verify(t, v, w.synced.Load())
	must(t, compare(more))
	gone(t, v)
}

// fillChunks are more than the share of TestShareFull has room for.
const fillChunks = 120 * mib / chunk

// fill writes a file that makes the share full, and syncs it.
func fill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for n := range int64(fillChunks) {
		if _, err := f.Write(content(n)); err != nil {
			return err
		}
	}
	return f.Sync()
}

// compare reads it back.
func compare(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	p := make([]byte, chunk)
	for n := range int64(fillChunks) {
		if _, err := io.ReadFull(f, p); err != nil {
			return err
		}
		if !bytes.Equal(p, content(n)) {
			return fmt.Errorf("WRONG BYTES: chunk %d of %s", n, path)
		}
	}
	return nil
}
