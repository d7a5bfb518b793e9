package vhdx

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Draft is a new file that gets its name only when it is complete. Where the
// filesystem can have a file without a name (O_TMPFILE: ext4, XFS, Btrfs,
// tmpfs; not NFS), not even a kill leaves anything of it; elsewhere it has a
// temporary name in the same directory, which begins with ".vhdx-create-".
type Draft struct {
	path         string // the name to be
	tmp          string // the name until then; "": none
	f            *os.File
	locked, done bool
}

// NewDraft begins a file, mode 0600, that is to be called path.
func NewDraft(path string) (*Draft, error) {
	dir := filepath.Dir(path)
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		f := os.NewFile(uintptr(fd), path)
		if _, err := os.Stat(procName(f)); err == nil {
			return &Draft{path: path, f: f}, nil
		}
		_ = f.Close() // without /proc it could never get a name
	}
	f, err := os.CreateTemp(dir, ".vhdx-create-*")
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", path, err)
	}
	return &Draft{path: path, tmp: f.Name(), f: f}, nil
}

// File is open for reading and writing and stays the draft's: whoever closes
// what they write through takes a duplicate ([Draft.Open]).
func (d *Draft) File() *os.File { return d.f }

// Open locks the file for as long as there is the draft, and returns a
// duplicate of its descriptor: the same open file description, and so the same
// lock ([FileOptions].NoLock).
func (d *Draft) Open() (*os.File, error) {
	if err := lockFile(d.f, true); err != nil {
		return nil, err
	}
	d.locked = true
	fd, err := unix.FcntlInt(d.f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", d.path, err)
	}
	return os.NewFile(uintptr(fd), d.path), nil
}

// Publish syncs the file, gives it its name and syncs the directory: a power
// cut shows it whole or not at all, and after Publish has returned, whole. An
// existing name is refused ([fs.ErrExist]), or replaced in one step.
func (d *Draft) Publish(replace bool) error {
	if err := d.publish(replace); err != nil {
		return fmt.Errorf("create %s: %w", d.path, err)
	}
	return nil
}

func (d *Draft) publish(replace bool) error {
	if err := d.f.Sync(); err != nil {
		return err
	}
	name := d.place
	if replace {
		name = d.replace
	}
	if err := name(); err != nil {
		return fmt.Errorf("name it %s: %w", d.path, err)
	}
	d.done = true
	if err := syncDir(filepath.Dir(d.path)); err != nil {
		if !replace {
			err = errors.Join(err, os.Remove(d.path))
		}
		return err
	}
	return nil
}

// place names the file if nothing has that name.
func (d *Draft) place() error {
	if d.tmp == "" {
		return linkOpen(d.f, d.path)
	}
	return renameOnce(d.tmp, d.path)
}

// replace names the file, whatever has that name now. A link never replaces,
// so a file without a name gets a temporary one first.
func (d *Draft) replace() error {
	if d.tmp == "" {
		tmp := filepath.Join(filepath.Dir(d.path), fmt.Sprintf(".vhdx-create-%d-%x", os.Getpid(), d.f.Fd()))
		if err := linkOpen(d.f, tmp); err != nil {
			return err
		}
		d.tmp = tmp
	}
	return os.Rename(d.tmp, d.path)
}

// Close ends the draft. Of one that was not published nothing is left.
func (d *Draft) Close() error {
	var err error
	if d.locked {
		err = unlockFile(d.f)
	}
	err = errors.Join(err, d.f.Close())
	if d.tmp != "" && !d.done {
		if rmErr := os.Remove(d.tmp); !errors.Is(rmErr, fs.ErrNotExist) {
			err = errors.Join(err, rmErr)
		}
	}
	return err
}

// procName is a name that leads to an open file whatever its own is, if any.
func procName(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// linkOpen gives an open file without a name one. By the descriptor alone
// (AT_EMPTY_PATH) it would take a capability.
func linkOpen(f *os.File, path string) error {
	return unix.Linkat(unix.AT_FDCWD, procName(f), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
}

// Rename gives a complete file another name, durably: in one step, and over
// an existing one only with replace (otherwise [fs.ErrExist]).
func Rename(from, to string, replace bool) error {
	rename := renameOnce
	if replace {
		rename = os.Rename
	}
	if err := rename(from, to); err != nil {
		return fmt.Errorf("name it %s: %w", to, err)
	}
	return syncDir(filepath.Dir(to))
}

// renameOnce renames without replacing.
func renameOnce(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		err = moveByLink(from, to) // NFS knows no RENAME_NOREPLACE
	}
	return err
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
