package vhdx

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Create writes a new image at path, with mode 0600. An existing path is
// refused ([fs.ErrExist]) and never replaced.
//
// The image is written under a temporary name in the same directory, which
// begins with ".vhdx-create-", synced, given its name in one step, and the
// directory is synced: path never names half an image. After an error nothing
// is left; a crash can leave the temporary file.
func Create(path string, o CreateOptions) (Created, error) {
	if _, err := os.Lstat(path); err == nil {
		return Created{}, &os.PathError{Op: "create", Path: path, Err: fs.ErrExist}
	}
	if _, err := o.complete(); err != nil {
		return Created{}, fmt.Errorf("create %s: %w", path, err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".vhdx-create-*")
	if err != nil {
		return Created{}, fmt.Errorf("create %s: %w", path, err)
	}
	done, err := createAs(tmp, path, o)
	if err != nil {
		if rmErr := os.Remove(tmp.Name()); !errors.Is(rmErr, fs.ErrNotExist) {
			err = errors.Join(err, rmErr)
		}
		return Created{}, err
	}
	return done, nil
}

// createAs closes tmp.
func createAs(tmp *os.File, path string, o CreateOptions) (Created, error) {
	f, err := NewOSFile(tmp, FileOptions{})
	if err != nil {
		return Created{}, errors.Join(err, tmp.Close())
	}
	done, err := CreateOn(f, o)
	if err != nil {
		return Created{}, errors.Join(err, f.Close())
	}
	err = publish(tmp.Name(), path)
	if closeErr := f.Close(); err == nil && closeErr != nil {
		err = errors.Join(closeErr, os.Remove(path))
	}
	if err != nil {
		return Created{}, fmt.Errorf("create %s: %w", path, err)
	}
	return done, nil
}

// publish gives the file at tmp the name path, which must not exist, and syncs
// the directory.
func publish(tmp, path string) error {
	err := unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		err = moveByLink(tmp, path) // NFS knows no RENAME_NOREPLACE
	}
	if err != nil {
		return fmt.Errorf("name it %s: %w", path, err)
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// moveByLink renames without replacing: a link never replaces.
func moveByLink(tmp, path string) error {
	if err := os.Link(tmp, path); err != nil {
		return err
	}
	if err := os.Remove(tmp); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
