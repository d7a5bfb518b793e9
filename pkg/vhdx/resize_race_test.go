package vhdx_test

import (
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// gatedFile holds up the next read of a page, once it is armed.
type gatedFile struct {
	vhdx.File
	armed         atomic.Bool
	reached, goOn chan struct{}
}

func (g *gatedFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := g.File.ReadAt(p, off)
	if len(p) == 4096 && g.armed.CompareAndSwap(true, false) {
		close(g.reached)
		<-g.goOn
	}
	return n, err
}

// A write that reads the sector bitmap while the disk gets another size marks
// the page that it has read, in whichever table it is then.
func TestResizeWhileBitsAreRead(t *testing.T) {
	for name, resize := range map[string]func(*vhdx.Image) error{
		"grow":   func(im *vhdx.Image) error { return im.Grow(16 * mib) },
		"shrink": func(im *vhdx.Image) error { return im.Resize(6*mib, vhdx.ResizeOptions{}) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			parent, path := filepath.Join(dir, "parent"), filepath.Join(dir, "child")
			_, err := vhdx.Create(parent, vhdx.CreateOptions{Size: 8 * mib, BlockSize: mib})
			must(t, err)
			_, err = vhdx.CreateChild(path, parent, vhdx.ChildOptions{BlockSize: mib})
			must(t, err)
			o := vhdx.OpenOptions{Parents: vhdx.ParentsIn(dir)}
			im := open(t, path, o)
			_, err = im.WriteAt(make([]byte, 512), 0)
			must(t, err)
			closeImage(t, im)

			f, err := os.OpenFile(path, os.O_RDWR, 0)
			must(t, err)
			osf, err := vhdx.NewOSFile(f, vhdx.FileOptions{})
			must(t, err)
			g := &gatedFile{File: osf, reached: make(chan struct{}), goOn: make(chan struct{})}
			im, err = vhdx.Open(g, o)
			must(t, err)
			_, err = im.WriteAt(make([]byte, mib), 3*mib) // begins; a whole block needs no bits
			must(t, err)
			g.armed.Store(true)
			done, resized := make(chan error, 1), make(chan error, 1)
			go func() {
				_, err := im.WriteAt(append([]byte{7}, make([]byte, 511)...), 8192)
				done <- err
			}()
			<-g.reached
			go func() { resized <- resize(im) }()
			if name == "grow" { // it does not wait for writers, as shrinking does
				must(t, <-resized)
				resized <- nil
			}
			close(g.goOn)
			must(t, <-done)
			must(t, <-resized)
			b := make([]byte, 1)
			_, err = im.ReadAt(b, 8192)
			must(t, err)
			if b[0] != 7 {
				t.Errorf("read %d", b[0])
			}
			closeImage(t, im)
		})
	}
}
