package guest

import (
	"bytes"
	"crypto/sha256"
	"io"
	"path/filepath"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/test/plugin"
)

// TestFence cuts a node off from the server while its pod writes. Another one,
// a client of its own, takes the volume over when the server has given the
// first one's locks away, and writes to it. Back on the network the first node
// still has writes to make. None of them may get through.
//
// The second node is this test with the pool open: one kernel does not have a
// volume's device twice.
func TestFence(t *testing.T) {
	b := export(t, newBacking(t, "ext4", 1<<30))
	one, two := newClient(t, 1), newClient(t, 2)
	p := start(t, "node-1", one.mount(t, b))
	second := openPool(t, two.mount(t, b), "node-2")
	v := volume(t, p, "fence", 512*mib, plugin.Filesystem("ext4"))
	w := startWriter(t, v)
	w.goesOn(t, 10)
	if err := second.Detach(t.Context(), v.ID, "node-1"); err == nil {
		t.Fatal("detached while the first node writes")
	}
	if im, err := second.OpenImage(t.Context(), v.ID, false, vhdx.OpenOptions{}); err == nil {
		t.Fatal(im.Close(), "opened while the first node writes")
	}

	one.cut(t)
	joined := false
	t.Cleanup(func() {
		if !joined {
			one.join(t) // or nothing of it ends
		}
	})
	w.stands(t)
	had := w.synced.Load()
	im := takeOver(t, second, v)
	t.Cleanup(func() { _ = im.Close() })
	want := ours(t, im)
	one.join(t)
	joined = true
	eventually(t, "the first node's I/O fails", func() bool { return ended(w) })
	if n := w.synced.Load(); n != had {
		t.Errorf("%d chunks were acknowledged to the node that was cut off, after the other had the volume", n-had)
	}
	_ = w.f.Close() // its device has failed
	later()
	if got := sum(t, im); !bytes.Equal(got, want) {
		t.Fatal("WRONG BYTES: the first node has written what the second one has")
	}
	must(t, v.Unpublish(t.Context()))
	// The first answer may be what the image had to say of its lost lock.
	eventually(t, "the first node lets go", func() bool { return v.Unstage(t.Context()) == nil })
	if got := sum(t, im); !bytes.Equal(got, want) {
		t.Fatal("WRONG BYTES: the first node has written at its end")
	}
	must(t, im.Close(), second.Detach(t.Context(), v.ID, "node-2"))

	// What had been synced is there, once the filesystem is whole again.
	must(t, v.Up(t.Context()))
	verify(t, v, had)
	gone(t, v)
}

// openPool opens the pool of a share as another node would.
func openPool(t *testing.T, share, node string) *pool.Set {
	t.Helper()
	p, err := pool.Open(pool.Options{Name: "default", Dir: filepath.Join(share, "pool"), Holder: node, Overcommit: 100})
	must(t, err)
	set, err := pool.NewSet(p)
	must(t, err, set.RegisterNode(t.Context(), pool.Node{ID: node, BootID: "another"}))
	t.Cleanup(func() { _ = set.Close() })
	return set
}

// takeOver does what a cluster does when a node is out of service.
func takeOver(t *testing.T, set *pool.Set, v *plugin.Volume) (im *vhdx.Image) {
	t.Helper()
	ctx := t.Context()
	var refused error
	defer func() {
		if refused != nil {
			t.Logf("the second node was refused: %v", refused)
		}
	}()
	eventually(t, "the second node gets the volume", func() bool {
		err := set.Detach(ctx, v.ID, "node-1")
		if err == nil {
			err = set.Attach(ctx, v.ID, "node-2", false)
		}
		if err == nil {
			im, err = set.OpenImage(ctx, v.ID, false, vhdx.OpenOptions{})
		}
		refused = err
		return err == nil
	})
	return im
}

// ours writes where a filesystem of this size has nothing, and gives the sum
// of all that the volume then has.
func ours(t *testing.T, im *vhdx.Image) []byte {
	t.Helper()
	p := bytes.Repeat([]byte{0xa5}, mib)
	for _, off := range []int64{im.Size() - 2*mib, im.Size() - mib} {
		_, err := im.WriteAt(p, off)
		must(t, err)
	}
	must(t, im.Flush())
	return sum(t, im)
}

func sum(t *testing.T, im *vhdx.Image) []byte {
	t.Helper()
	h := sha256.New()
	_, err := io.Copy(h, io.NewSectionReader(im, 0, im.Size()))
	must(t, err)
	return h.Sum(nil)
}

func ended(w *writer) bool {
	select {
	case err := <-w.ended:
		return err != nil
	default:
		return false
	}
}
