package fuseloop

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/helper"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev/devtest"
)

func TestMain(m *testing.M) {
	helper.RunIfHelper(Commands()...)
	os.Exit(m.Run())
}

func TestQuick(t *testing.T) {
	for _, noRing := range []bool{false, true} {
		im, err := devtest.NewFileImage(filepath.Join(t.TempDir(), "f"), 64<<20, 512, 512)
		if err != nil {
			t.Fatal(err)
		}
		a := New(Options{NoRing: noRing, Note: func(id, s string) { t.Log(id, s) }})
		t0 := time.Now()
		d, err := a.Attach(t.Context(), blockdev.Config{ID: "quick", Image: im})
		if err != nil {
			t.Fatal(err)
		}
		t.Log(d.Path(), time.Since(t0))
		f, err := os.OpenFile(d.Path(), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(make([]byte, 1<<20), 0); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		t0 = time.Now()
		if err := d.Detach(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Log(time.Since(t0))
		if err := im.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
