package fuseloop

import (
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/helper"
	"github.com/csi-vhdx/csi-driver-vhdx/internal/loopdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev/devtest"
)

func TestMain(m *testing.M) {
	devtest.RunIfGuest()
	if step := os.Getenv(killVariable); step != "" {
		killAtStep(step)
	}
	if id := os.Getenv(serveVariable); id != "" && os.Args[0] != "vhdx-helper" {
		serveElsewhere(id)
	}
	helper.RunIfHelper(Commands()...)
	goleak.VerifyTestMain(m)
}

// backend is fuseloop with these options, on images that newImage makes.
func backend(o Options, newImage func(*testing.T, int64, int) devtest.Image) devtest.Backend {
	return devtest.Backend{
		New: func(t *testing.T) blockdev.Attacher {
			o := o
			o.Note = func(id, text string) { t.Logf("%s: %s", id, text) }
			return New(o)
		},
		NewImage: newImage,
		Leftovers: func(t *testing.T, id string) (left []string) {
			found, err := loopdev.Find(tagOf(id))
			if err != nil {
				t.Error(err)
			}
			for _, dev := range found {
				left = append(left, loopdev.Path(dev.Number))
			}
			return left
		},
	}
}

func memImage(_ *testing.T, size int64, sector int) devtest.Image {
	return devtest.NewMemImage(size, sector)
}

// fileImage makes raw files that demand this alignment.
func fileImage(align int) func(*testing.T, int64, int) devtest.Image {
	return func(t *testing.T, size int64, sector int) devtest.Image {
		im, err := devtest.NewFileImage(filepath.Join(t.TempDir(), "raw"), size, sector, align)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := im.Close(); err != nil {
				t.Error(err)
			}
		})
		return im
	}
}

func TestConformance(t *testing.T) {
	for _, c := range []struct {
		name string
		o    Options
		im   func(*testing.T, int64, int) devtest.Image
	}{
		{"ring/memory", Options{}, memImage},
		{"ring/file512", Options{}, fileImage(512)},
		{"ring/file4096", Options{}, fileImage(4096)},
		{"poll/memory", Options{NoRing: true}, memImage},
		{"poll/file4096", Options{NoRing: true}, fileImage(4096)},
	} {
		if testing.Short() && c.name != "ring/file4096" && c.name != "poll/memory" {
			continue
		}
		t.Run(c.name, func(t *testing.T) { devtest.Run(t, backend(c.o, c.im)) })
	}
}
