package pool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/fsx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// A child of another volume's layer announces itself before it is made:
// children/<xx>/<parent>/<child>, an empty file. So whether a layer is needed by
// another volume is one look at one directory, however many volumes there are.

func childrenDir(parent string) string { return path.Join(dirChildren, parent[:2], parent) }

// announce makes the marker durable. The caller has the lock of the volume
// whose layer parent is.
func (p *Pool) announce(parent, child string) error {
	dir := childrenDir(parent)
	if err := p.tree.Mkdir(path.Dir(dir)); err != nil {
		return err
	}
	if err := p.tree.Mkdir(dir); err != nil {
		return err
	}
	f, err := p.tree.Open(path.Join(dir, child), os.O_CREATE|os.O_EXCL|os.O_WRONLY, fsx.FileMode)
	switch {
	case err == nil:
		f.Close()
	case !errors.Is(err, fs.ErrExist):
		return err
	}
	return p.tree.SyncDir(dir)
}

// disclaim takes the marker back. None is success.
func (p *Pool) disclaim(parent, child string) error {
	if parent == "" {
		return nil
	}
	if err := p.tree.Remove(path.Join(childrenDir(parent), child)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// hasChildren reports whether another volume stands on a layer.
func (p *Pool) hasChildren(image string) (bool, error) {
	d, err := p.tree.Dir(childrenDir(image))
	if errors.Is(err, fs.ErrNotExist) {
		p.refresh(path.Dir(childrenDir(image)))
		d, err = p.tree.Dir(childrenDir(image))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer d.Close()
	if err := d.Refresh(); err != nil {
		return false, err
	}
	names, err := d.Names()
	for _, n := range names {
		if validImage(n) {
			return true, nil
		}
	}
	return false, err
}

// forgetChildren removes the directory of an image that is gone.
func (p *Pool) forgetChildren(image string) {
	p.tree.RemoveLazily(childrenDir(image)) //nolint:errcheck // an empty directory is in nobody's way
}

// imagesOf opens the parents of a pool's images: those that a locator names as
// an image of the same pool, and no others.
type imagesOf struct{ p *Pool }

// OpenParent implements [vhdx.ParentOpener].
func (o imagesOf) OpenParent(_ string, at vhdx.ParentPath) (vhdx.File, string, error) {
	image, err := imageAt(at)
	if err != nil {
		return nil, at.Value, err
	}
	name := imagePath(image)
	tried := path.Join(o.p.tree.Name(), name)
	f, err := o.p.tree.Open(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, tried, err
	}
	osf, err := vhdx.NewOSFile(f, vhdx.FileOptions{ReadOnly: true, NoLock: true}) // whoever opens it as a parent locks it
	if err != nil {
		f.Close()
		return nil, tried, err
	}
	return osf, tried, nil
}

// imageAt reads the only form in which a pool's images name their parents.
func imageAt(at vhdx.ParentPath) (string, error) {
	parts := strings.Split(strings.ReplaceAll(at.Value, `\`, "/"), "/")
	if at.Key != "relative_path" {
		return "", fmt.Errorf("%s: %w: an image of a pool names its parent relative to itself", at.Key, fs.ErrNotExist)
	}
	if len(parts) != 3 || parts[0] != ".." {
		return "", fmt.Errorf("%w: no image of the pool has that path", vhdx.ErrParentRefused)
	}
	image, ok := strings.CutSuffix(parts[2], ".vhdx")
	if !ok || !validImage(image) || image[:2] != parts[1] {
		return "", fmt.Errorf("%w: no image of the pool has that name", vhdx.ErrParentRefused)
	}
	return image, nil
}

// parentPath is how an image names its parent.
func parentPath(parent string) string { return path.Join("..", parent[:2], parent+".vhdx") }

// newImageFile makes an image's file, empty, and locks it (I-POOL-3).
func (p *Pool) newImageFile(image string) (*os.File, error) {
	name := imagePath(image)
	if err := p.tree.Mkdir(path.Dir(name)); err != nil {
		return nil, err
	}
	f, err := p.tree.Open(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, fsx.FileMode)
	if err != nil {
		return nil, err
	}
	if err := p.leases.Claim(image, f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
