package fsx

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

var (
	// ErrForeign: a symlink, FIFO, device, socket or directory stands where a
	// regular file or directory of ours belongs. It was not opened.
	ErrForeign = errors.New("foreign object")
	// ErrTooLarge: a file is larger than it may be. Its content was dropped.
	ErrTooLarge = errors.New("file is too large")
)

// Tree is a directory and what is below it. Paths are slash-separated and
// relative to it.
type Tree struct {
	root *os.Root
	temp string
	made sync.Map // directories that this process has made sure of; see Mkdir
	// Step, if set before first use, is asked before every change to the tree.
	// Tests die in it, make the change fail with what it returns, or leave the
	// change out: ErrSkip.
	Step func(op, path string) error
}

// ErrSkip makes a step not happen, without an error.
var ErrSkip = errors.New("skip this step")

// OpenTree opens the directory. Temporary files go into temp below it, which
// the caller makes with Mkdir; "." is allowed.
func OpenTree(dir, temp string) (*Tree, error) {
	r, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &Tree{root: r, temp: temp}, nil
}

// Close gives up the directory. Files opened from it stay open.
func (t *Tree) Close() error { return t.root.Close() }

// Name is the directory's path.
func (t *Tree) Name() string { return t.root.Name() }

// do makes one change to the tree.
func (t *Tree) do(op, path string, change func() error) error {
	if t.Step != nil {
		switch err := t.Step(op, path); {
		case errors.Is(err, ErrSkip):
			return nil
		case err != nil:
			return named(op, path, err)
		}
	}
	return named(op, path, change())
}

// Dir is an open directory of a [Tree].
type Dir struct {
	root *os.Root
	path string // in the tree, for messages
	own  bool   // root is ours to close
}

// Dir opens a directory. No component may be a symlink.
func (t *Tree) Dir(name string) (*Dir, error) {
	d := &Dir{root: t.root, path: "."}
	if name == "." {
		return d, nil
	}
	for part := range strings.SplitSeq(name, "/") {
		next, err := d.child(part)
		d.Close()
		if err != nil {
			return nil, err
		}
		d = next
	}
	return d, nil
}

func (d *Dir) child(name string) (*Dir, error) {
	full := path.Join(d.path, name)
	fi, err := d.root.Lstat(name)
	if err != nil {
		return nil, named("open directory", full, err)
	}
	if !fi.IsDir() {
		return nil, foreign(full, fi.Mode(), "directory")
	}
	r, err := d.root.OpenRoot(name)
	if err != nil {
		return nil, named("open directory", full, err)
	}
	return &Dir{root: r, path: full, own: true}, nil
}

// Close closes the directory.
func (d *Dir) Close() {
	if d.own {
		d.root.Close()
	}
}

// Lstat describes the entry itself, never what a symlink points to.
func (d *Dir) Lstat(name string) (fs.FileInfo, error) { return d.root.Lstat(name) }

// Names lists the names in the directory, sorted.
func (d *Dir) Names() ([]string, error) {
	f, err := d.root.Open(".")
	if err != nil {
		return nil, named("list", d.path, err)
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, named("list", d.path, err)
}

// Entries lists the directory, sorted by name. It looks at each entry, which
// [Dir.Names] does not.
func (d *Dir) Entries() ([]fs.DirEntry, error) {
	return fs.ReadDir(d.root.FS(), ".")
}

// Refresh makes sure that names other machines added to or removed from the
// directory are seen: a network filesystem may otherwise answer from a cached
// negative entry for as long as its attribute cache lives (NFS: 30 s and more).
func (d *Dir) Refresh() error {
	f, err := d.root.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	return withFD(f, func(fd int) error {
		var st unix.Statx_t
		return unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, &st)
	})
}

// Sync makes the directory's entries durable. Filesystems that cannot sync a
// directory (SMB) change it on the server before they answer, so that is no error.
func (d *Dir) Sync() error {
	f, err := d.root.Open(".")
	if err != nil {
		return named("sync directory", d.path, err)
	}
	defer f.Close()
	return named("sync directory", d.path, syncDir(f))
}

func syncDir(f *os.File) error {
	err := f.Sync()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return err
}

// Open opens a regular file. A file is created only together with O_EXCL, so
// that nothing foreign is written to.
func (d *Dir) Open(name string, flag int, perm fs.FileMode) (*os.File, error) {
	f, err := d.open(name, flag, perm)
	if err != nil {
		return nil, err
	}
	// O_NONBLOCK was for what is no regular file; on one it would make
	// io_uring answer EAGAIN instead of waiting.
	if err := withFD(f, func(fd int) error { return unix.SetNonblock(fd, false) }); err != nil {
		f.Close()
		return nil, named("open", path.Join(d.path, name), err)
	}
	return f, nil
}

func (d *Dir) open(name string, flag int, perm fs.FileMode) (*os.File, error) {
	full := path.Join(d.path, name)
	if flag&os.O_CREATE == 0 {
		// Opening a device can have effects, so it is not even tried.
		fi, err := d.root.Lstat(name)
		if err != nil {
			return nil, named("open", full, err)
		}
		if !fi.Mode().IsRegular() {
			return nil, foreign(full, fi.Mode(), "regular file")
		}
	} else if flag&os.O_EXCL == 0 {
		return nil, fmt.Errorf("open %s: O_CREATE without O_EXCL", full)
	}
	f, err := d.root.OpenFile(name, flag|unix.O_NOFOLLOW|unix.O_NONBLOCK, perm)
	if err != nil {
		return nil, named("open", full, err)
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = foreign(full, fi.Mode(), "regular file")
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Read returns the content of a regular file of at most limit bytes.
func (d *Dir) Read(name string, limit int) ([]byte, error) {
	const tries = 5 // of a file that another machine replaces while it is read
	for try := 1; ; try++ {
		b, err := d.read(name, limit)
		if err == nil || !errors.Is(err, unix.ESTALE) || try == tries {
			return b, err
		}
	}
}

func (d *Dir) read(name string, limit int) ([]byte, error) {
	f, err := d.open(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	full := path.Join(d.path, name)
	b, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err != nil {
		return nil, named("read", full, err)
	}
	if len(b) > limit {
		return nil, fmt.Errorf("read %s: %w: more than %d bytes", full, ErrTooLarge, limit)
	}
	return b, nil
}

// Read returns the content of a regular file of at most limit bytes.
func (t *Tree) Read(name string, limit int) ([]byte, error) {
	d, err := t.Dir(path.Dir(name))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Read(path.Base(name), limit)
}

// Stat describes the entry itself, never what a symlink points to.
func (t *Tree) Stat(name string) (fs.FileInfo, error) {
	d, err := t.Dir(path.Dir(name))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	fi, err := d.Lstat(path.Base(name))
	return fi, named("stat", name, err)
}

// Open opens a regular file; see [Dir.Open].
func (t *Tree) Open(name string, flag int, perm fs.FileMode) (*os.File, error) {
	d, err := t.Dir(path.Dir(name))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if flag&os.O_CREATE == 0 {
		return d.Open(path.Base(name), flag, perm)
	}
	var f *os.File
	err = t.do("create", name, func() (err error) {
		f, err = d.Open(path.Base(name), flag, perm)
		return err
	})
	return f, err
}

// Statfs describes the filesystem the tree is on.
func (t *Tree) Statfs() (unix.Statfs_t, error) {
	var st unix.Statfs_t
	err := t.withRoot(func(f *os.File) error {
		return withFD(f, func(fd int) error { return unix.Fstatfs(fd, &st) })
	})
	return st, named("statfs", t.Name(), err)
}

func (t *Tree) withRoot(fn func(*os.File) error) error {
	f, err := t.root.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	return fn(f)
}

func withFD(f *os.File, fn func(fd int) error) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := c.Control(func(fd uintptr) { ferr = fn(int(fd)) }); err != nil {
		return err
	}
	return ferr
}

// named says what was done to which path of the tree, in place of the absolute
// or partial path the os package knows.
func named(op, name string, err error) error {
	if err == nil {
		return nil
	}
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = pe.Err
	} else if le, ok := errors.AsType[*os.LinkError](err); ok {
		err = le.Err
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

func foreign(name string, m fs.FileMode, want string) error {
	return fmt.Errorf("%s: %w: a %s, no %s; not opened", name, ErrForeign, KindOf(m), want)
}

// KindOf says in a word what kind of object a mode describes.
func KindOf(m fs.FileMode) string {
	switch {
	case m.IsRegular():
		return "regular file"
	case m.IsDir():
		return "directory"
	case m&fs.ModeSymlink != 0:
		return "symlink"
	case m&fs.ModeNamedPipe != 0:
		return "FIFO"
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeDevice != 0:
		return "device"
	}
	return "special file"
}

// Allocated is how many bytes of the filesystem a file takes.
func Allocated(fi fs.FileInfo) int64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return fi.Size()
}
