package fsx

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// The controller and the nodes may be different users of one group: the pool's
// directory is then that group's and has its setgid bit, which directories
// inherit. The umask has the last word.
const (
	FileMode = 0o660
	dirMode  = 0o770
)

// Replace makes name a regular file with this content, atomically and durably.
func (t *Tree) Replace(name string, data []byte) error {
	return t.replace(name, data, true)
}

// ReplaceLazily is Replace for what may be lost by a power cut: nothing is synced.
func (t *Tree) ReplaceLazily(name string, data []byte) error {
	return t.replace(name, data, false)
}

func (t *Tree) replace(name string, data []byte, durable bool) error {
	d, err := t.Dir(path.Dir(name))
	if err != nil {
		return err
	}
	defer d.Close()
	tmp, err := t.writeTemp(data, durable)
	if err != nil {
		return err
	}
	if err := t.do("rename", name, func() error { return t.root.Rename(tmp, name) }); err != nil {
		t.root.Remove(tmp) //nolint:errcheck // the first error says more; a leftover is collected
		return err
	}
	if !durable {
		return nil
	}
	return t.do("sync directory", path.Dir(name), d.Sync)
}

// LinkOnce makes name a regular file with this content, durably, unless there
// is something of that name: fs.ErrExist. Of several callers on any number of
// machines one succeeds.
func (t *Tree) LinkOnce(name string, data []byte) error {
	d, err := t.Dir(path.Dir(name))
	if err != nil {
		return err
	}
	defer d.Close()
	tmp, err := t.writeTemp(data, true)
	if err != nil {
		return err
	}
	if err := t.do("link", name, func() error { return t.link(tmp, name) }); err != nil {
		t.root.Remove(tmp) //nolint:errcheck // the first error says more; a leftover is collected
		// A server may repeat a link whose answer was lost and then say that
		// the name exists: it is our own file.
		if !errors.Is(err, fs.ErrExist) || !t.holds(d, path.Base(name), data) {
			return err
		}
	}
	if err := t.do("sync directory", path.Dir(name), d.Sync); err != nil {
		return err
	}
	return t.do("unlink", tmp, func() error { return unlink(t.root, tmp) })
}

// unlink takes nothing there for success.
func unlink(r *os.Root, name string) error {
	if err := r.Remove(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (t *Tree) holds(d *Dir, base string, data []byte) bool {
	b, err := d.Read(base, len(data))
	return err == nil && bytes.Equal(b, data)
}

// link falls back on a rename that replaces nothing where the filesystem has
// no hard links (some SMB servers).
func (t *Tree) link(tmp, name string) error {
	err := t.root.Link(tmp, name)
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EMLINK) && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	if rerr := t.renameOnce(tmp, name); !errors.Is(rerr, unix.EINVAL) && !errors.Is(rerr, errors.ErrUnsupported) {
		return rerr
	}
	return fmt.Errorf("the filesystem has neither hard links nor RENAME_NOREPLACE: %w", err)
}

func (t *Tree) renameOnce(tmp, name string) error {
	return t.withDirs(path.Dir(tmp), path.Dir(name), func(from, to int) error {
		return unix.Renameat2(from, path.Base(tmp), to, path.Base(name), unix.RENAME_NOREPLACE)
	})
}

func (t *Tree) withDirs(a, b string, fn func(a, b int) error) error {
	return t.withDir(a, func(fa int) error {
		return t.withDir(b, func(fb int) error { return fn(fa, fb) })
	})
}

func (t *Tree) withDir(name string, fn func(fd int) error) error {
	d, err := t.Dir(name)
	if err != nil {
		return err
	}
	defer d.Close()
	f, err := d.root.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	return withFD(f, fn)
}

// Remove removes a file durably. Nothing there is success.
func (t *Tree) Remove(name string) error {
	d, err := t.Dir(path.Dir(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.Close()
	if err := t.do("unlink", name, func() error { return unlink(d.root, path.Base(name)) }); err != nil {
		return err
	}
	return t.do("sync directory", path.Dir(name), d.Sync)
}

// RemoveLazily is Remove for what may come back after a power cut.
func (t *Tree) RemoveLazily(name string) error {
	return t.do("unlink", name, func() error { return unlink(t.root, name) })
}

// Mkdir makes a directory durably. One that is there is success; whoever made
// it may have died before it was durable, so each process sees to that once.
func (t *Tree) Mkdir(name string) error { return t.Mkdirs(path.Dir(name), path.Base(name)) }

// Mkdirs is Mkdir for several directories in one, with one sync: a process that
// dies often opens trees often.
func (t *Tree) Mkdirs(parent string, bases ...string) error {
	dir, err := t.Dir(parent)
	if err != nil {
		return err
	}
	defer dir.Close()
	var unsure []string
	for _, base := range bases {
		name := path.Join(parent, base)
		switch d, err := dir.child(base); {
		case err == nil:
			d.Close()
			if _, ok := t.made.Load(name); ok {
				continue
			}
		case !errors.Is(err, fs.ErrNotExist):
			return err
		default:
			err := t.do("mkdir", name, func() error { return dir.root.Mkdir(base, dirMode) })
			if err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
		}
		unsure = append(unsure, name)
	}
	if len(unsure) == 0 {
		return nil
	}
	if err := t.do("sync directory", parent, dir.Sync); err != nil {
		return err
	}
	for _, name := range unsure {
		t.made.Store(name, true)
	}
	return nil
}

// SyncDir makes the entries of a directory durable.
func (t *Tree) SyncDir(name string) error {
	d, err := t.Dir(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return t.do("sync directory", name, d.Sync)
}

func (t *Tree) writeTemp(data []byte, durable bool) (name string, err error) {
	name = path.Join(t.temp, TempPrefix+Random())
	f, err := t.Open(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, FileMode)
	if err != nil {
		return "", err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = named("close", name, cerr)
		}
		if err != nil {
			t.root.Remove(name) //nolint:errcheck // the first error says more; a leftover is collected
		}
	}()
	err = t.do("write", name, func() error {
		_, err := f.Write(data)
		return err
	})
	if err == nil && durable {
		err = t.do("sync", name, f.Sync)
	}
	return name, err
}

// TempPrefix begins the name of every temporary file.
const TempPrefix = ".tmp-"

// Random is a name nobody else has.
func Random() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
