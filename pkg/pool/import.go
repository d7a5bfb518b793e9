package pool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"

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
	// FSType is what the disk is formatted with, for claims that do not say. The
	// volume counts as used, so that it is never formatted.
	FSType string
}

// Import makes a volume of a VHDX file, which must be sound, open nowhere, and no
// differencing image. Where an earlier call was interrupted, or its file's old
// name could not be removed, it goes on. Snapshot the share first: from here on
// the file's only name is the pool's.
// ErrInvalid, ErrConflict, ErrNoSpace, ErrInUse, ErrNoPool, fs.ErrNotExist.
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

// importFile is a creation whose image is there already:
//
//	file locked, checked, synced -> begin (room reserved, image named)
//	-> file linked under its image's name, directory synced
//	-> commit (record linked) -> old name removed
//
// Until the record exists the file has its old name, so what is undone before
// loses nothing (I-POOL-4); from then on the record names it.
func (p *Pool) importFile(ctx context.Context, imp Import) (Volume, error) {
	file, err := filepath.EvalSymlinks(imp.File)
	if err != nil {
		return Volume{}, err
	}
	if err := outside(file); err != nil {
		return Volume{}, err
	}
	src, err := openSource(ctx, file)
	if err != nil {
		return Volume{}, err
	}
	defer src.Close()
	spec, err := p.specOf(imp, src.info)
	if err != nil {
		return Volume{}, err
	}
	s, err := p.lockVolume(ctx, hashOf(spec.Name))
	if err != nil {
		return Volume{}, err
	}
	defer s.close()
	r, err := p.readRecord(s.hash)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		r, err = s.adopt(ctx, spec, src)
	case err == nil && !p.isImage(r, src.file):
		err = fmt.Errorf("volume %q: %w", spec.Name, ErrConflict)
	}
	if err != nil {
		return Volume{}, err
	}
	if err := p.tree.Disown(src.file, file); err != nil {
		return Volume{}, fmt.Errorf("volume %s exists, but its file still has its old name too; run this again, or remove that name: %w", r.ID, err)
	}
	return p.volume(r), nil
}

// outside refuses a file that lies among the images of any pool: a record may
// name it, and its name there may be the only one it has.
func outside(file string) error {
	file, err := filepath.Abs(file)
	if err != nil {
		return err
	}
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

// source is a file that is being imported, locked.
type source struct {
	file *os.File
	info vhdx.Info
}

func (s *source) Close() { unlockAndClose(s.file) }

// unlockAndClose does not leave the lock to the closing: a child that this
// process has begun to start shares it until its exec.
func unlockAndClose(f *os.File) {
	_ = fsx.Unlock(f, fsx.Whole)
	f.Close()
}

// openSource opens a file, locks it, and refuses what is damaged.
func openSource(ctx context.Context, file string) (*source, error) {
	fi, err := os.Lstat(file)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: it is a %s, no regular file", ErrInvalid, fsx.KindOf(fi.Mode()))
	}
	f, err := os.OpenFile(file, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	s := &source{file: f}
	if s.info, err = inspect(ctx, f); err == nil {
		err = stillNamed(file, f)
	}
	if err != nil {
		unlockAndClose(f)
		return nil, err
	}
	return s, nil
}

// stillNamed is the second look, under the lock: another import may have come
// between, and have made the file a volume's image.
func stillNamed(file string, f *os.File) error {
	mine, err := f.Stat()
	if err != nil {
		return err
	}
	now, err := os.Lstat(file)
	if err == nil && !os.SameFile(now, mine) {
		err = fmt.Errorf("%w: it is another file by now", ErrBusy)
	}
	return err
}

// inspect locks the file, through f alone, and reads what it is.
func inspect(ctx context.Context, f *os.File) (vhdx.Info, error) {
	if err := fsx.TryLock(f, fsx.Whole, true); errors.Is(err, fsx.ErrLocked) {
		return vhdx.Info{}, fmt.Errorf("%w: another process has it open", ErrInUse)
	} else if err != nil {
		return vhdx.Info{}, err
	}
	same, err := fsx.Dup(f)
	if err != nil {
		return vhdx.Info{}, err
	}
	osf, err := vhdx.NewOSFile(same, vhdx.FileOptions{NoLock: true})
	if err != nil {
		same.Close()
		return vhdx.Info{}, err
	}
	report, err := vhdx.Check(ctx, osf, vhdx.CheckOptions{PerCode: 1})
	if worst, found := report.Worst(); err == nil && found && (report.Corrupt() || report.Counts[vhdx.SeverityUnsupported] > 0) {
		err = fmt.Errorf("%w: %v; see vhdxctl check", ErrInvalid, worst)
	}
	if err != nil {
		osf.Close()
		return vhdx.Info{}, err
	}
	// Its log, if there is one to replay, stays for whoever opens the volume.
	im, err := vhdx.Open(osf, vhdx.OpenOptions{ReadOnly: true, NoParents: true}) // closes osf, also when it fails
	if err != nil {
		return vhdx.Info{}, err
	}
	info := im.Info()
	return info, im.Close()
}

// specOf is the volume that the file makes.
func (p *Pool) specOf(imp Import, info vhdx.Info) (Spec, error) {
	if info.HasParent {
		return Spec{}, fmt.Errorf("%w: it is a differencing image; make it stand alone with vhdxctl convert", ErrInvalid)
	}
	return p.complete(Spec{Name: imp.Name, Size: info.VirtualSize, Limit: info.VirtualSize, Params: Params{
		Fixed: info.Fixed, BlockSize: info.BlockSize, LogSize: info.LogSize,
		LogicalSectorSize: info.LogicalSectorSize, FSType: imp.FSType,
	}})
}

// isImage reports whether the file is the image of a live record.
func (p *Pool) isImage(r *record, f *os.File) bool {
	if r.Deleting {
		return false
	}
	mine, err := f.Stat()
	if err != nil {
		return false
	}
	theirs, err := p.tree.Stat(imagePath(r.Image))
	return err == nil && os.SameFile(mine, theirs)
}

// adopt makes the record of the file.
func (s *session) adopt(ctx context.Context, spec Spec, src *source) (*record, error) {
	r := newRecord(s.p, spec)
	r.Use = UseMounted
	r.Committed = max(r.Committed, src.info.FileSize)
	o := s.p.newOperation(opCreate, r, r.Committed)
	o.Fixed = false // its space is taken already
	if err := s.begin(ctx, o, nil); err != nil {
		return nil, s.p.full(err, o.Bytes)
	}
	ctx = context.WithoutCancel(ctx)
	err := s.p.takeOver(r, src.file)
	if err == nil {
		err = s.commit(ctx, o, func() error { return s.p.linkRecord(r) })
	}
	if err != nil {
		src.Close() // so that its new name can be removed
		_, err = s.afterFailure(ctx, r, o, err)
		return nil, err
	}
	return r, nil
}

// takeOver makes the file one that controller and nodes may open, and gives it
// its image's name, both durably. One that has other names already is refused:
// it would change under them, and could be imported under each.
func (p *Pool) takeOver(r *record, f *os.File) error {
	more, err := fsx.OtherNames(f)
	if err == nil && more {
		err = fmt.Errorf("%w: the file has other names (hard links), under which it would change too; import a copy (vhdxctl convert)", ErrInvalid)
	}
	if err == nil {
		err = errors.Join(p.tree.Share(f), f.Sync())
	}
	if err != nil {
		return err
	}
	name := imagePath(r.Image)
	if err := p.tree.Mkdir(path.Dir(name)); err != nil {
		return err
	}
	switch err := p.tree.Adopt(f, name); {
	case errors.Is(err, unix.EXDEV):
		return fmt.Errorf("%w: the file is not on the filesystem of the pool; copy it there first (vhdxctl convert), then import the copy: %w", ErrInvalid, err)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPERM), errors.Is(err, unix.EMLINK):
		return fmt.Errorf("%w: this share has no hard links, which an import needs; make a volume and copy the disk into it (vhdxctl convert -n): %w", ErrInvalid, err)
	default:
		return err
	}
}
