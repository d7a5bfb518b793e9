package fuseloop

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev/devtest"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

var (
	_ blockdev.Image  = (*vhdx.Image)(nil)
	_ blockdev.Pinner = (*vhdx.Image)(nil)
)

// vhdxImage makes dynamic images with small blocks, so that a test crosses
// many. Each is checked by another implementation when its test is over.
func vhdxImage(blockSize int64) func(*testing.T, int64, int) devtest.Image {
	return func(t *testing.T, size int64, sector int) devtest.Image {
		path := filepath.Join(t.TempDir(), "image.vhdx")
		if _, err := vhdx.Create(path, vhdx.CreateOptions{Size: size, BlockSize: blockSize, LogicalSectorSize: sector}); err != nil {
			t.Fatal(err)
		}
		im, err := vhdx.OpenPath(path, vhdx.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := im.Close(); err != nil {
				t.Error(err)
			}
			// The lock is free at once: nothing of the ring holds the file.
			if im, err := vhdx.OpenPath(path, vhdx.OpenOptions{RefuseDirty: true}); err != nil {
				t.Errorf("open again: %v", err)
			} else if err := im.Close(); err != nil {
				t.Error(err)
			}
			if sector != 512 {
				return // qemu-img knows no others
			}
			if out, err := exec.Command("qemu-img", "check", "-f", "vhdx", path).CombinedOutput(); err != nil {
				t.Errorf("qemu-img check: %v\n%s", err, out)
			}
		})
		return im
	}
}

func TestConformanceVHDX(t *testing.T) {
	for _, c := range []struct {
		name string
		o    Options
		im   func(*testing.T, int64, int) devtest.Image
	}{
		{"ring/1MiB", Options{}, vhdxImage(1 << 20)},
		{"ring/default", Options{}, vhdxImage(0)},
		{"poll/1MiB", Options{NoRing: true}, vhdxImage(1 << 20)},
	} {
		if testing.Short() && c.name != "ring/1MiB" {
			continue
		}
		t.Run(c.name, func(t *testing.T) { devtest.Run(t, backend(c.o, c.im)) })
	}
}
