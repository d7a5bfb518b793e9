package disk

import (
	"context"
	"errors"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// cloneUnit is what places and lengths must be multiples of to be shared; no
// filesystem that can share has larger blocks here.
const cloneUnit = 4096

// placer is a source that knows in which files it lies.
type placer interface {
	EachPlace(off, n int64, visit func(vhdx.FilePlace) error) error
}

// EachPlace says that the disk lies in the file as it is.
func (f *File) EachPlace(off, n int64, visit func(vhdx.FilePlace) error) error {
	fd, _ := f.Descriptor()
	return visit(vhdx.FilePlace{Offset: off, Length: n, FD: fd, FileOffset: off})
}

// clone has the filesystem share a piece between the source's files and the
// target's, where it can: nothing is read or written then. False: it cannot.
func (c *copier) clone(ctx context.Context, p piece) (bool, error) {
	source, ok := c.source.(placer)
	if !ok || !c.cloning.Load() {
		return false, nil
	}
	var to func(vhdx.FilePlace) error
	var dir string
	switch t := c.target.(type) {
	case *NewImage:
		to, dir = t.clone, filepath.Dir(t.Info().File)
	case *NewFile:
		to, dir = t.clone, filepath.Dir(t.Name())
	case *File:
		to, dir = t.clone, filepath.Dir(t.Name())
	default:
		return false, nil
	}
	if err := p.awaitTurn(ctx); err != nil {
		return false, err
	}
	// The pieces before may have found that it cannot.
	if c.cloning.Load() && !c.probed.Swap(true) {
		c.cloning.Store(canClone(source, p, dir))
	}
	if !c.cloning.Load() {
		return false, nil
	}
	err := source.EachPlace(p.off, p.length, to)
	switch {
	case err == nil:
		c.shared.Store(true)
		close(p.after)
		return true, nil
	case !cannotClone(err):
		return false, err
	case !errors.Is(err, errUnaligned) && !c.shared.Load():
		c.cloning.Store(false) // it has never worked, and will not
	}
	return false, nil
}

// canClone tries it with a file of no name in the target's directory, so that
// a target on a filesystem that cannot never has a place in vain. Where there
// are no such files, the target itself will show.
func canClone(source placer, p piece, dir string) bool {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	tried := false
	err = source.EachPlace(p.off, p.length, func(place vhdx.FilePlace) error {
		if tried || place.Length < cloneUnit || place.FileOffset%cloneUnit != 0 {
			return nil
		}
		tried = true
		return cloneRange(fd, 0, place, place.Offset, cloneUnit)
	})
	return err == nil
}

var errUnaligned = errors.New("not in whole blocks of the filesystem")

func cannotClone(err error) bool {
	for _, e := range []error{errUnaligned, errors.ErrUnsupported, unix.EOPNOTSUPP, unix.ENOTTY, unix.ENOSYS, unix.EXDEV, unix.EINVAL, unix.EPERM, unix.ETXTBSY} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (f *File) clone(p vhdx.FilePlace) error {
	fd, _ := f.Descriptor()
	return cloneRange(fd, p.Offset, p, p.Offset, p.Length)
}

func (n *NewImage) clone(p vhdx.FilePlace) error {
	if n.fixed {
		return errors.ErrUnsupported // it must own its space
	}
	var r vhdx.Resolution
	if err := n.Resolve(true, p.Offset, p.Length, &r); err != nil {
		return err
	}
	fd, _ := n.Descriptor()
	for _, e := range r.Extents {
		if err := cloneRange(fd, e.FileOffset, p, e.Offset, e.Length); err != nil {
			r.Abort()
			return err
		}
	}
	return r.Commit()
}

// cloneRange shares the part of p from offset on, which belongs at to.
func cloneRange(fd int, to int64, p vhdx.FilePlace, offset, length int64) error {
	from := p.FileOffset + offset - p.Offset
	if (from|to|length)%cloneUnit != 0 {
		return errUnaligned
	}
	return unix.IoctlFileCloneRange(fd, &unix.FileCloneRange{
		Src_fd: int64(p.FD), Src_offset: uint64(from), Src_length: uint64(length), Dest_offset: uint64(to),
	})
}
