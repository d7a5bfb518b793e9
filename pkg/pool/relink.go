package pool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/fsx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// imported is what an import of a chain has left to do once its record exists.
type imported struct {
	// Linked: each image names its parent as a pool's images do.
	Linked bool `json:"linked,omitempty"`
	// Names are those that the layers' files had before, from the bottom up, and
	// may have yet.
	Names []oldName `json:"names"`
}

// oldName is a path from the pool's directory, as the machine that imports sees it.
type oldName struct {
	Image string `json:"image"`
	Name  string `json:"name"`
}

// fault says what is wrong with it, "" for nothing.
func (i *imported) fault() string {
	if i == nil {
		return ""
	}
	if len(i.Names) > maxLayers {
		return fmt.Sprintf("an import of %d layers", len(i.Names))
	}
	for _, n := range i.Names {
		if !validImage(n.Image) || n.Name == "" {
			return fmt.Sprintf("an import of layer %.64q", n.Image)
		}
	}
	return ""
}

// unlinked reports whether the volume cannot be opened before [session.relink].
func (r *record) unlinked() bool { return r.Import != nil && !r.Import.Linked }

// endRelink does for whoever opens a volume what its import was interrupted at.
func (p *Pool) endRelink(ctx context.Context, id volumeID) (*record, error) {
	s, err := p.tryVolume(id.hash)
	if errors.Is(err, fsx.ErrLocked) {
		err = fmt.Errorf("volume %s: %w: it is being imported", id, ErrBusy)
	}
	if err != nil {
		return nil, err
	}
	defer s.close()
	r, err := p.live(id)
	if err != nil {
		return nil, err
	}
	return s.relink(ctx, r, nil)
}

// relink makes each image of an imported chain name its parent as a pool's images
// do, from the bottom up, and then the record say so. Nothing but that path changes
// in them. held are images that are open and locked; the others must be free, and
// are locked for as long as it takes. One that is done already is passed over.
func (s *session) relink(ctx context.Context, r *record, held map[string]*os.File) (*record, error) {
	if !r.unlinked() {
		return r, nil
	}
	c := &relinking{p: s.p, at: map[string]int{}}
	defer c.close()
	for _, l := range append(r.Layers[:len(r.Layers):len(r.Layers)], layer{Image: r.Image}) {
		if err := c.add(l.Image, held[l.Image]); err != nil {
			return nil, s.p.heldError("import", r, err)
		}
	}
	for i := 1; i < len(c.images); i++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := c.link(i); err != nil { //nolint:contextcheck // what it does is short, and may not be cut short
			return nil, fmt.Errorf("volume %s: link image %s to its parent: %w", r.ID, c.images[i], err)
		}
	}
	next, done := *r, *r.Import
	done.Linked = true
	next.Import = &done
	return &next, s.replaceFresh(&next)
}

// relinking is a chain whose images are open, from the bottom up.
type relinking struct {
	p       *Pool
	images  []string
	files   []*os.File
	at      map[string]int // by the name of a file
	claimed []*os.File
}

func (c *relinking) close() {
	for _, f := range c.claimed {
		f.Close()
	}
}

func (c *relinking) add(image string, f *os.File) error {
	if f == nil {
		var err error
		if f, err = c.p.claimImage(image); err != nil {
			return err
		}
		if f == nil {
			return fmt.Errorf("%w: image %s: %w", ErrDamaged, imagePath(image), fs.ErrNotExist)
		}
		c.claimed = append(c.claimed, f)
	}
	c.at[f.Name()] = len(c.images)
	c.images, c.files = append(c.images, image), append(c.files, f)
	return nil
}

// link makes the ith image name the one below it.
func (c *relinking) link(i int) error {
	done, err := c.linked(i)
	if err != nil || done {
		return err
	}
	osf, err := again(c.files[i], vhdx.FileOptions{NoLock: true})
	if err != nil {
		return err
	}
	im, err := vhdx.Open(c.p.stepped(osf), vhdx.OpenOptions{Parents: c}) // closes osf, also when it fails
	if err != nil {
		return err
	}
	return errors.Join(im.ReplaceParent(vhdx.ParentChange{RelativePath: parentPath(c.images[i-1])}), im.Close())
}

// linked reports whether that is so, and nothing of it in the log alone.
func (c *relinking) linked(i int) (bool, error) {
	osf, err := again(c.files[i], vhdx.FileOptions{NoLock: true})
	if err != nil {
		return false, err
	}
	im, err := vhdx.Open(osf, vhdx.OpenOptions{ReadOnly: true, NoParents: true})
	if err != nil {
		return false, err
	}
	link, replay := im.Layers()[0].Parent, im.Info().Replay
	if err := im.Close(); err != nil || link == nil || replay.Entries > 0 {
		return false, err
	}
	for _, at := range link.Paths {
		image, err := imageAt(at)
		return err == nil && image == c.images[i-1], nil // the first is the relative one
	}
	return false, nil
}

// OpenParent implements [vhdx.ParentOpener]: whatever an image says, its parent is
// the one that the record says.
func (c *relinking) OpenParent(child string, at vhdx.ParentPath) (vhdx.File, string, error) {
	i := c.at[child] - 1
	if i < 0 {
		return nil, at.Value, fmt.Errorf("%s: %w", child, vhdx.ErrParentRefused)
	}
	osf, err := again(c.files[i], vhdx.FileOptions{ReadOnly: true, NoLock: true})
	if err != nil {
		return nil, c.files[i].Name(), err
	}
	return osf, c.files[i].Name(), nil
}

// dropNames removes the names that the layers' files had, from the bottom up.
func (s *session) dropNames(r *record) (*record, error) {
	if r.Import == nil {
		return r, nil
	}
	root, err := s.p.realDir()
	if err != nil {
		return nil, err
	}
	for _, n := range r.Import.Names {
		if err := s.dropName(n.Image, filepath.Join(root, n.Name)); err != nil {
			return nil, err
		}
	}
	next := *r
	next.Import = nil
	return &next, s.replaceFresh(&next)
}

func (s *session) dropName(image, name string) error {
	f, err := s.p.tree.Open(imagePath(image), os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // merged since; its old name is the only one
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := s.p.tree.Disown(f, name); err != nil {
		return err
	}
	more, err := fsx.OtherNames(f)
	if err == nil && more {
		err = fmt.Errorf("%w: %s, which was %s, has another name yet, under which it must not be written: remove that name", ErrInvalid, f.Name(), name)
	}
	return err
}
