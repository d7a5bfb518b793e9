package pool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/fsx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// chainFiles are the files of a chain that is being imported, from the top down.
type chainFiles []*source

// Close lets the files go.
func (c chainFiles) Close() {
	for _, src := range c {
		src.Close()
	}
}

// withParents adds what the top stands on, each file opened, locked and found to be
// the one that the file above was made of. What it returns is to be closed, also
// with an error.
func (p *Pool) withParents(ctx context.Context, files chainFiles, dir string) (chainFiles, error) {
	if dir == "" {
		dir = filepath.Dir(files[0].path)
	}
	dir, err := filepath.EvalSymlinks(dir)
	if err == nil {
		dir, err = filepath.Abs(dir)
	}
	if err != nil {
		return files, err
	}
	for child := files[0]; child.link != nil; child = files[len(files)-1] {
		if len(files) > maxLayers {
			return files, fmt.Errorf("%w: more than %d images in one chain; merge some first (vhdxctl merge), or make a copy that stands alone (vhdxctl convert)", ErrInvalid, maxLayers+1)
		}
		parent, err := files.openParent(ctx, child, dir)
		if err != nil {
			return files, fmt.Errorf("parent of %s: %w", child.path, err)
		}
		files = append(files, parent)
		if err := parent.isParentOf(child); err != nil {
			return files, fmt.Errorf("parent of %s: %w", child.path, err)
		}
	}
	return files, files.refuseOthers(ctx, dir)
}

// openParent opens the file that an image's locator leads to, below dir.
func (c chainFiles) openParent(ctx context.Context, child *source, dir string) (*source, error) {
	file, err := locate(child, dir)
	if err != nil {
		return nil, err
	}
	fi, err := os.Lstat(file)
	if err != nil {
		return nil, err
	}
	for _, src := range c {
		if mine, err := src.file.Stat(); err == nil && os.SameFile(mine, fi) {
			return nil, fmt.Errorf("%w: %s is its own ancestor, a cycle; restore the chain from a backup", ErrInvalid, file)
		}
	}
	if err := outside(file); err != nil {
		return nil, fmt.Errorf("%w; what a volume has, another cannot: make a copy that stands alone (vhdxctl convert)", err)
	}
	src, err := openSource(ctx, file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return src, nil
}

// locate is the absolute path, without symlinks, of an image's parent.
func locate(child *source, dir string) (string, error) {
	var tried []string
	var fail error
	for _, at := range child.link.Paths {
		f, name, err := vhdx.ParentsIn(dir).OpenParent(child.path, at)
		tried = append(tried, name)
		if err != nil {
			if fail == nil || errors.Is(fail, fs.ErrNotExist) {
				fail = err
			}
			continue
		}
		if err := f.Close(); err != nil {
			return "", err
		}
		file, err := filepath.EvalSymlinks(name)
		if err != nil {
			return "", err
		}
		if below, err := filepath.Rel(dir, file); err != nil || !filepath.IsLocal(below) {
			return "", fmt.Errorf("%w: %s lies outside %s: %w", ErrInvalid, file, dir, vhdx.ErrParentRefused)
		}
		return file, nil
	}
	if fail == nil || errors.Is(fail, fs.ErrNotExist) {
		fail = errors.Join(vhdx.ErrParentMissing, fail)
	}
	return "", fmt.Errorf("%w: tried %s, in and below %s: %w", ErrInvalid, strings.Join(tried, ", "), dir, fail)
}

// isParentOf refuses a file that is not the one that the child was made of, or that
// cannot be frozen as it is.
func (s *source) isParentOf(child *source) error {
	switch {
	case !child.link.Accepts(s.info.DataWriteGUID):
		return fmt.Errorf("%w: %s has DataWriteGuid %s, the child was made of %s: %w; it was written since, or is another image: restore it from a backup",
			ErrInvalid, s.path, s.info.DataWriteGUID, child.link.Linkage, vhdx.ErrParentMismatch)
	case s.info.LogicalSectorSize != child.info.LogicalSectorSize:
		return fmt.Errorf("%w: %s has logical sectors of %d bytes, the child of %d: %w", ErrInvalid, s.path, s.info.LogicalSectorSize, child.info.LogicalSectorSize, vhdx.ErrParentMismatch)
	case s.info.Replay.Entries > 0:
		return fmt.Errorf("%w: %s was not closed, and a layer is never written: replay its log first (vhdxctl replay %s)", ErrInvalid, s.path, s.path)
	}
	return s.onlyName()
}

// errLeftBehind says what becomes of a child that is not imported with its parent.
var errLeftBehind = errors.New("it would not open any more; make a copy of it that stands alone (vhdxctl convert), remove it, or move it away if it is no child")

// refuseOthers looks beside the files for other images that stand on one of them:
// with its name they would lose their parent. Beside a file that stands alone it
// passes over what cannot be asked.
func (c chainFiles) refuseOthers(ctx context.Context, dir string) error {
	k := vhdx.Kinship{Parents: func(string) vhdx.ParentOpener { return vhdx.ParentsIn(dir) }}
	if len(c) > 1 {
		k.Unknown = errLeftBehind
	}
	var dirs []string
	for _, src := range c {
		fi, err := src.file.Stat()
		if err != nil {
			return err
		}
		k.Known = append(k.Known, fi)
		dirs = append(dirs, filepath.Dir(src.path))
	}
	slices.Sort(dirs)
	for i, src := range c {
		k.Parent, k.DataWriteGUID = k.Known[i], src.info.DataWriteGUID
		for _, beside := range slices.Compact(slices.Clone(dirs)) {
			found, err := k.ChildrenIn(ctx, beside)
			if err == nil && len(found) > 0 {
				err = fmt.Errorf("%s stands on %s: %w", found[0], src.path, errLeftBehind)
			}
			if err != nil {
				return fmt.Errorf("%w: %w", ErrInvalid, err)
			}
		}
	}
	return nil
}

// describe makes the files layers of the record, all but the top, which is its image.
func (c chainFiles) describe(p *Pool, r *record) error {
	root, err := p.realDir()
	if err != nil {
		return err
	}
	for _, src := range slices.Backward(c[1:]) {
		fi, err := src.file.Stat()
		if err != nil {
			return err
		}
		l := layer{
			Image: uuid.NewString(), Size: src.info.VirtualSize, Bytes: fsx.Allocated(fi),
			Use: r.Use, FSType: r.FSType, Created: time.Now().UTC().Truncate(time.Millisecond),
		}
		r.Layers = append(r.Layers, l)
		if r.Import == nil {
			r.Import = &imported{}
		}
		name, err := filepath.Rel(root, src.path)
		if err != nil {
			return err
		}
		r.Import.Names = append(r.Import.Names, oldName{Image: l.Image, Name: name})
	}
	r.Committed = r.frozenBytes() + max(r.headFootprint(r.Size), c[0].info.FileSize)
	_, err = r.encode()
	return err
}

// realDir is the pool's directory, absolute and without symlinks.
func (p *Pool) realDir() (string, error) {
	dir, err := filepath.EvalSymlinks(p.tree.Name())
	if err != nil {
		return "", err
	}
	return filepath.Abs(dir)
}
