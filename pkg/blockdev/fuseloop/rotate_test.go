package fuseloop

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

var _ blockdev.FilePinner = (*vhdx.Image)(nil)

// The image's file is replaced again and again while another process writes to
// the device: each byte lands in the file that is the image's then.
func TestRotateUnderDevice(t *testing.T) {
	const size = 48 << 20
	dir := t.TempDir()
	layer := func(n int) string { return filepath.Join(dir, fmt.Sprintf("layer-%d.vhdx", n)) }
	if _, err := vhdx.Create(layer(0), vhdx.CreateOptions{Size: size, BlockSize: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	o := vhdx.OpenOptions{Parents: vhdx.ParentsIn(dir)}
	im, err := vhdx.OpenPath(layer(0), o)
	if err != nil {
		t.Fatal(err)
	}
	d, err := New(Options{}).Attach(t.Context(), blockdev.Config{ID: "rotate-" + filepath.Base(dir) + fmt.Sprint(os.Getpid()), Image: im})
	if err != nil {
		t.Fatal(err)
	}
	want := filepath.Join(dir, "want")
	content := make([]byte, size)
	last := 0
	for pass, block := range []string{"8k", "64k", "512k"} {
		r := rand.New(rand.NewPCG(1, uint64(pass)))
		for i := range content {
			content[i] = byte(r.Uint32())
		}
		if err := os.WriteFile(want, content, 0o600); err != nil {
			t.Fatal(err)
		}
		dd := exec.CommandContext(t.Context(), "dd", "if="+want, "of="+d.Path(), "bs="+block, "oflag=direct", "conv=notrunc", "status=none")
		var out bytes.Buffer
		dd.Stderr = &out
		if err := dd.Start(); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- dd.Wait() }()
		for wait := true; wait; {
			last++
			if _, err := im.CreateChild(layer(last), vhdx.ChildOptions{BlockSize: 1 << 20}); err != nil {
				t.Fatal(err)
			}
			if err := im.RotatePath(layer(last), nil); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-done:
				if wait = false; err != nil {
					t.Fatalf("dd: %v\n%s", err, &out)
				}
			case <-time.After(50 * time.Millisecond):
			}
		}
		// Read through the device: what is in the newest file goes through the ring.
		if out, err := exec.CommandContext(t.Context(), "cmp", want, d.Path()).CombinedOutput(); err != nil {
			t.Fatalf("after %d rotations: %v\n%s", last, err, out)
		}
	}
	if err := d.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	o.ReadOnly, o.RefuseDirty = true, true
	if im, err = vhdx.OpenPath(layer(last), o); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, size)
	if _, err := im.ReadAt(got, 0); err != nil || !bytes.Equal(got, content) {
		t.Fatalf("opened again after %d rotations it shows something else (%v)", last, err)
	}
	t.Logf("%d rotations", last)
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
}
