package fsx

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Adopt gives an open file, from anywhere on the tree's filesystem, a name in the
// tree as well, durably. fs.ErrExist if there is something of that name, EXDEV
// from another filesystem.
func (t *Tree) Adopt(f *os.File, name string) error {
	err := t.do("link", name, func() error {
		return t.withDir(path.Dir(name), func(dir int) error {
			return withFD(f, func(fd int) error {
				// By descriptor, for its old name may lead elsewhere by now.
				return unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(fd), dir, path.Base(name), unix.AT_SYMLINK_FOLLOW)
			})
		})
	})
	if err != nil {
		return err
	}
	return t.SyncDir(path.Dir(name))
}

// Disown removes another name of an adopted file, durably: the absolute path
// file, if that still leads to it. Nothing there is success. It never removes a
// file's only name.
func (t *Tree) Disown(f *os.File, file string) error {
	dir, err := os.Open(filepath.Dir(file))
	if err != nil {
		return err
	}
	defer dir.Close()
	mine, err := f.Stat()
	if err != nil {
		return err
	}
	switch fi, err := os.Lstat(file); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !os.SameFile(fi, mine):
		return fmt.Errorf("%s: %w: it is another file by now", file, ErrForeign)
	}
	switch more, err := OtherNames(f); {
	case err != nil:
		return err
	case !more:
		return fmt.Errorf("%s: %w: it is the file's only name", file, ErrForeign)
	}
	if err := t.do("unlink", file, func() error { return os.Remove(file) }); err != nil {
		return err
	}
	return t.do("sync directory of", file, func() error { return syncDir(dir) })
}

// Share makes an open file one that whoever works in the tree may open: it gets
// the owner and group of the tree's directory, and the mode of files made here.
func (t *Tree) Share(f *os.File) error {
	var owner *syscall.Stat_t
	err := t.withRoot(func(root *os.File) error {
		fi, err := root.Stat()
		if err == nil {
			owner, _ = fi.Sys().(*syscall.Stat_t)
		}
		return err
	})
	if err != nil {
		return err
	}
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	has, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || owner == nil {
		return fmt.Errorf("%s: %w: owner unknown", f.Name(), errors.ErrUnsupported)
	}
	if has.Uid != owner.Uid || has.Gid != owner.Gid {
		if err := f.Chown(int(owner.Uid), int(owner.Gid)); err != nil {
			return fmt.Errorf("give it to user %d and group %d, to whom the directory belongs: %w", owner.Uid, owner.Gid, err)
		}
	}
	return f.Chmod(FileMode)
}

// OtherNames reports whether an open file has more than one name.
func OtherNames(f *os.File) (bool, error) {
	var st unix.Stat_t
	if err := withFD(f, func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
		return false, named("stat", f.Name(), err)
	}
	return st.Nlink > 1, nil
}

// Reflink makes dst, empty, share all of src's blocks: what is written to one
// later does not show in the other. Both are on one filesystem.
func Reflink(dst, src *os.File) error {
	return withFD(src, func(from int) error {
		return withFD(dst, func(to int) error {
			return named("reflink", dst.Name(), unix.IoctlFileClone(to, from))
		})
	})
}
