package pool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/fsx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// Import says which file becomes a volume.
type Import struct {
	// File is a VHDX on the filesystem of the pool's directory. It is not
	// copied: it becomes the volume's image and loses the name it has.
	File string
	Name string // of the volume: any bytes, 1 to MaxName of them
	Pool string // "": the default pool
	// Parents is the directory in and below which the parents of a differencing
	// image may be, whatever it says; "": the one that File is in. They are on the
	// pool's filesystem too, and become layers of the volume.
	Parents string
	// FSType is what the disk is formatted with, for claims that do not say. The
	// volume counts as used, so that it is never formatted.
	FSType string
}

// Import makes a volume of a VHDX file, or of a differencing one and all that it
// stands on. Each must be sound and open nowhere, and have one name and no children
// beside it that stay behind. Where an earlier call was interrupted, or an old name
// could not be removed, it goes on. Snapshot the share first: from here on the files'
// only names are the pool's.
// ErrInvalid, ErrConflict, ErrNoSpace, ErrInUse, ErrBusy, ErrNoPool, fs.ErrNotExist.
func (s *Set) Import(ctx context.Context, imp Import) (Volume, error) {
	p, err := s.Pool(imp.Pool)
	if err != nil {
		return Volume{}, err
	}
	v, err := p.importFile(ctx, imp)
	if err != nil {
		return Volume{}, fmt.Errorf("import %s into pool %s: %w", imp.File, p.name, p.notWritable(err))
	}
	return v, nil
}

// importFile is a creation whose images are there already:
//
//	files locked, checked, synced -> begin (room reserved, images named)
//	-> each file linked under its image's name, directory synced
//	-> commit (record linked) -> each image's link to its parent, from the bottom up
//	-> record: linked -> old names removed
//
// Until the record exists nothing in a file has changed and each has its old name,
// so what is undone before loses nothing (I-POOL-4); from then on the record names
// them, and whoever opens the volume finishes the links (I-POOL-21).
func (p *Pool) importFile(ctx context.Context, imp Import) (Volume, error) {
	src, err := p.openTop(ctx, imp.File)
	if err != nil {
		return Volume{}, err
	}
	files := chainFiles{src}
	defer func() { files.Close() }()
	spec, err := p.specOf(imp, src.info)
	if err != nil {
		return Volume{}, err
	}
	if r, rerr := p.readRecord(hashOf(spec.Name)); errors.Is(rerr, fs.ErrNotExist) || rerr == nil && !p.isImage(r, src.file) {
		if files, err = p.withParents(ctx, files, imp.Parents); err != nil {
			return Volume{}, err
		}
	}
	s, err := p.lockVolume(ctx, hashOf(spec.Name))
	if err != nil {
		return Volume{}, err
	}
	defer s.close()
	r, err := p.readRecord(s.hash)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		r, err = s.adopt(ctx, spec, files)
	case err == nil && !p.isImage(r, src.file):
		err = fmt.Errorf("volume %q: %w", spec.Name, ErrConflict)
	}
	if err != nil {
		return Volume{}, err
	}
	return s.settle(ctx, r, files)
}

// openTop opens the file that a caller names.
func (p *Pool) openTop(ctx context.Context, name string) (*source, error) {
	file, err := filepath.EvalSymlinks(name)
	if err != nil {
		return nil, err
	}
	if file, err = filepath.Abs(file); err != nil {
		return nil, err
	}
	if err := outside(file); err != nil {
		return nil, err
	}
	return openSource(ctx, file)
}

// settle ends an import whose record exists.
func (s *session) settle(ctx context.Context, r *record, files chainFiles) (Volume, error) {
	fail := func(err error) (Volume, error) {
		return Volume{}, fmt.Errorf("volume %s exists, but its import has not ended; run this again: %w", r.ID, err)
	}
	top := files[0]
	held := map[string]*os.File{r.Image: top.file}
	if len(files) == len(r.Layers)+1 {
		for i, l := range r.Layers {
			held[l.Image] = files[len(files)-1-i].file
		}
	}
	next, err := s.relink(ctx, r, held)
	if err != nil {
		return fail(err)
	}
	if next, err = s.dropNames(next); err != nil {
		return fail(err)
	}
	if err := s.p.tree.Disown(top.file, top.path); err != nil {
		return Volume{}, fmt.Errorf("volume %s exists, but its file still has its old name too; run this again, or remove that name: %w", r.ID, err)
	}
	return s.p.volume(next), nil
}

// outside refuses a file that lies among the images of any pool: a record may
// name it, and its name there may be the only one it has.
func outside(file string) error {
	for dir := filepath.Dir(file); dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if filepath.Base(dir) != dirImages {
			continue
		}
		root := filepath.Dir(dir)
		if _, err := os.Lstat(filepath.Join(root, fileMarker)); err == nil {
			return fmt.Errorf("%w: it is among the images of the pool in %s; if no record names it (vhdxctl pool problems), move it out of there first", ErrInvalid, root)
		}
	}
	return nil
}

// specOf is the volume that the file makes.
func (p *Pool) specOf(imp Import, info vhdx.Info) (Spec, error) {
	return p.complete(Spec{Name: imp.Name, Size: info.VirtualSize, Limit: info.VirtualSize, Params: Params{
		Fixed: info.Fixed, BlockSize: info.BlockSize, LogSize: info.LogSize,
		LogicalSectorSize: info.LogicalSectorSize, FSType: imp.FSType,
	}})
}

// isImage reports whether the file is an image of a live record: the one that is
// written, or, once they can be opened, one below that, which it became by a snapshot.
func (p *Pool) isImage(r *record, f *os.File) bool {
	if r.Deleting {
		return false
	}
	mine, err := f.Stat()
	if err != nil {
		return false
	}
	images := []string{r.Image}
	if !r.unlinked() {
		for _, l := range r.layers() {
			images = append(images, l.Image)
		}
	}
	return slices.ContainsFunc(images, func(image string) bool {
		theirs, err := p.tree.Stat(imagePath(image))
		return err == nil && os.SameFile(mine, theirs)
	})
}

// adopt makes the record of the files.
func (s *session) adopt(ctx context.Context, spec Spec, files chainFiles) (*record, error) {
	r := newRecord(s.p, spec)
	r.Use = UseMounted
	if files[len(files)-1].link != nil {
		return nil, fmt.Errorf("volume %q: %w: it has just been deleted", spec.Name, ErrBusy)
	}
	if err := files.describe(s.p, r); err != nil {
		return nil, err
	}
	o := s.p.newOperation(opCreate, r, r.Committed)
	o.Fixed = false // its space is taken already
	for _, l := range r.Layers {
		o.Layers = append(o.Layers, l.Image)
	}
	if err := s.begin(ctx, o, nil); err != nil {
		return nil, s.p.full(err, o.Bytes)
	}
	ctx = context.WithoutCancel(ctx)
	var err error
	for i, image := range o.images() {
		if err == nil {
			err = s.p.takeOver(image, files[len(files)-1-i])
		}
	}
	if err == nil {
		err = s.commit(ctx, o, func() error { return s.p.linkRecord(r) })
	}
	if err != nil {
		files.Close() // so that their new names can be removed
		_, err = s.afterFailure(ctx, r, o, err)
		return nil, err
	}
	return r, nil
}

// takeOver makes the file one that controller and nodes may open, and gives it
// its image's name, both durably. One that has other names already is refused:
// it would change under them, and could be imported under each.
func (p *Pool) takeOver(image string, src *source) error {
	err := src.onlyName()
	if err == nil {
		err = errors.Join(p.tree.Share(src.file), src.file.Sync())
	}
	if err != nil {
		return err
	}
	name := imagePath(image)
	if err := p.tree.Mkdir(path.Dir(name)); err != nil {
		return err
	}
	switch err := p.tree.Adopt(src.file, name); {
	case errors.Is(err, unix.EXDEV):
		return fmt.Errorf("%w: %s is not on the filesystem of the pool; copy it there first (vhdxctl convert), then import the copy: %w", ErrInvalid, src.path, err)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPERM), errors.Is(err, unix.EMLINK):
		return fmt.Errorf("%w: this share has no hard links, which an import needs; make a volume and copy the disk into it (vhdxctl convert -n): %w", ErrInvalid, err)
	default:
		return err
	}
}

func (s *source) onlyName() error {
	more, err := fsx.OtherNames(s.file)
	if err == nil && more {
		err = fmt.Errorf("%w: %s has other names (hard links), under which it would change too; import a copy (vhdxctl convert)", ErrInvalid, s.path)
	}
	return err
}
