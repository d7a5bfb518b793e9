package vhdx

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// ParentOpener decides where the parents of differencing images may live.
type ParentOpener interface {
	// OpenParent opens, read-only and without a lock, the file that a path in
	// the locator of the image called child stands for. An error that wraps
	// [fs.ErrNotExist] makes the next of the locator's paths be tried; one
	// that wraps [ErrParentRefused] says that the path leads where no parent
	// may be. tried is what the path stands for, for messages.
	OpenParent(child string, path ParentPath) (f File, tried string, err error)
}

// ParentPath is a path in a parent locator (MS-VHDX 2.6.2.6.3).
type ParentPath struct {
	Key   string // "relative_path", "volume_path" or "absolute_win32_path"
	Value string // as it is in the file
}

// maxChainDepth bounds how many images a chain may have.
const maxChainDepth = 256

var errTooDeep = fmt.Errorf("more than %d images in one chain: %w", maxChainDepth, ErrParentRefused)

// ParentsIn accepts parents in the directory dir and below, whatever a locator
// or a symbolic link says. A relative path counts from the child's directory.
// What follows the volume, drive or share of the other two kinds of path is
// tried as an absolute path of this machine, and then below dir.
func ParentsIn(dir string) ParentOpener { return parentsIn(dir) }

type parentsIn string

// OpenParent implements [ParentOpener].
func (dir parentsIn) OpenParent(child string, path ParentPath) (File, string, error) {
	base, err := filepath.Abs(string(dir))
	if err != nil {
		return nil, path.Value, err
	}
	candidates, err := path.candidates(base, child)
	if err != nil {
		return nil, path.Value, err
	}
	var tried []string
	err = nil
	for _, target := range candidates {
		tried = append(tried, target)
		f, openErr := openInside(base, target)
		if openErr == nil {
			return f, target, nil
		}
		if err == nil || errors.Is(err, ErrParentRefused) {
			err = openErr
		}
	}
	return nil, strings.Join(tried, " and "), err
}

// candidates are the absolute paths that a locator's path may stand for.
func (p ParentPath) candidates(base, child string) ([]string, error) {
	value := strings.ReplaceAll(p.Value, `\`, "/")
	if p.Key == ondisk.LocatorRelativePath {
		if strings.HasPrefix(value, "/") || len(value) > 1 && value[1] == ':' {
			return nil, fmt.Errorf("relative_path is not relative: %w", ErrParentRefused)
		}
		dir, err := filepath.Abs(filepath.Dir(child))
		return []string{filepath.Join(dir, value)}, err
	}
	rest, ok := strings.CutPrefix(value, "//?/")
	switch {
	case !ok:
		rest = value
	case strings.HasPrefix(rest, "UNC/"):
		_, rest, _ = strings.Cut(rest[len("UNC/"):], "/") // server
		_, rest, _ = strings.Cut(rest, "/")               // share
	default:
		_, rest, _ = strings.Cut(rest, "/") // drive or volume
	}
	if len(rest) > 1 && rest[1] == ':' {
		rest = rest[2:]
	}
	whole, below := filepath.Join("/", rest), filepath.Join(base, filepath.Join("/", rest))
	if whole == below {
		return []string{whole}, nil
	}
	return []string{whole, below}, nil
}

// openInside opens a file below base. No symbolic link leads out of base.
func openInside(base, target string) (File, error) {
	name, err := filepath.Rel(base, target)
	if err != nil || !filepath.IsLocal(name) {
		return nil, fmt.Errorf("it lies outside %s: %w", base, ErrParentRefused)
	}
	root, err := os.OpenRoot(base)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.Open(name)
	if err != nil {
		switch {
		case errors.Is(err, unix.ENOTDIR):
			err = fmt.Errorf("%w: %w", err, fs.ErrNotExist)
		case strings.Contains(err.Error(), "escapes"), errors.Is(err, unix.ELOOP): // os has no name for the first
			err = fmt.Errorf("%w: %w", err, ErrParentRefused)
		}
		return nil, err
	}
	of, err := NewOSFile(f, FileOptions{ReadOnly: true, NoLock: true})
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return of, nil
}

// ParentError says why an image's parent cannot be used, and which paths were
// tried. It wraps [ErrParentMissing], [ErrParentMismatch] or [ErrParentRefused],
// or what opening the parent answered.
type ParentError struct {
	Child string
	Tried []string
	Err   error
}

func (e *ParentError) Error() string {
	tried := "no path tried"
	if len(e.Tried) > 0 {
		tried = "tried " + strings.Join(e.Tried, ", ")
	}
	return fmt.Sprintf("%s: parent (%s): %v", e.Child, tried, e.Err)
}

func (e *ParentError) Unwrap() error { return e.Err }

// openChain opens the parent that the locator names, and so what is below it.
func (im *Image) openChain() error {
	switch {
	case !im.metadata.params.HasParent || im.opts.NoParents:
		return nil
	case im.opts.rotating != nil: // the parent is at hand
		return im.adoptParent(im.opts.rotating)
	case im.opts.Parents == nil:
		return &ParentError{Child: im.name, Err: fmt.Errorf("a differencing image, and OpenOptions.Parents says nowhere where parents may be: %w", ErrParentRefused)}
	}
	ref, err := im.openParent()
	if err != nil {
		return err
	}
	c := newChain(ref)
	if len(im.opts.trail) == 0 {
		c.flatten() // nobody reads through the chain of a parent
	}
	im.below.Store(c)
	return nil
}

// openParent tries the locator's paths in the specification's order.
func (im *Image) openParent() (*parentRef, error) {
	if len(im.opts.trail)+1 >= maxChainDepth {
		return nil, &ParentError{Child: im.name, Err: errTooDeep}
	}
	f, fail := im.findParent(im.opts.Parents)
	if f == nil {
		return nil, fail
	}
	ref, err := im.openParentFile(f)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: %w", ErrParentMissing, err)
		}
		fail.Err = err
		return nil, fail
	}
	return ref, nil
}

// findParent opens the file that the first good one of the locator's paths
// leads to. What it has tried is in the error either way.
func (im *Image) findParent(in ParentOpener) (File, *ParentError) {
	fail := &ParentError{Child: im.name}
	for _, key := range ondisk.LocatorPaths {
		value, ok := im.metadata.locator.Value(key)
		if !ok {
			continue
		}
		f, tried, err := in.OpenParent(im.name, ParentPath{key, value})
		fail.Tried = append(fail.Tried, tried)
		if err == nil {
			return f, fail
		}
		if fail.Err == nil || errors.Is(fail.Err, fs.ErrNotExist) {
			fail.Err = err
		}
	}
	if errors.Is(fail.Err, fs.ErrNotExist) {
		fail.Err = fmt.Errorf("%w: %w", ErrParentMissing, fail.Err)
	}
	return nil, fail
}

// openParentFile opens the image in f, which it takes over, as im's parent.
func (im *Image) openParentFile(f File) (*parentRef, error) {
	trail := im.opts.trail
	self, _ := identity(im.f)
	trail = append(trail[:len(trail):len(trail)], self)
	ref, err := shareParent(f, trail)
	if ref == nil && err == nil {
		ref, err = openShared(f, OpenOptions{ReadOnly: true, Parents: im.opts.Parents, trail: trail})
	} else {
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return nil, err
	}
	if err := im.checkParent(ref.im); err != nil {
		return nil, errors.Join(err, parents.release(ref))
	}
	return ref, nil
}

// shareParent looks whether f is open as a parent already, or is one of the
// images that lead to it.
func shareParent(f File, trail []FileID) (*parentRef, error) {
	own, ok := f.(Identified)
	if !ok {
		return nil, nil
	}
	id := own.Identity()
	for _, above := range trail {
		if above == id {
			return nil, fmt.Errorf("%s is its own ancestor: a cycle: %w", f.Name(), ErrParentRefused)
		}
	}
	ref := parents.find(id)
	if ref == nil {
		return nil, nil
	}
	depth := len(trail) + 1
	if below := ref.im.below.Load(); below != nil {
		depth += len(below.layers)
	}
	if depth > maxChainDepth {
		return nil, errors.Join(errTooDeep, parents.release(ref))
	}
	return ref, nil
}

func openShared(f File, o OpenOptions) (*parentRef, error) {
	if err := lockShared(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	im, err := Open(f, o)
	if err != nil {
		return nil, err
	}
	return parents.add(im), nil
}

// lockShared keeps writers away from a file that an opener has opened (I-CHAIN-3).
func lockShared(f File) error {
	if l, ok := f.(locker); ok {
		return l.lock(false)
	}
	return nil
}

// checkParent refuses a parent that is not the one the child was made for.
func (im *Image) checkParent(parent *Image) error {
	guid := parent.headers.current.DataWriteGUID
	first, second, err := im.metadata.locator.Linkage()
	if err != nil {
		return err
	}
	if guid != first && (second.IsZero() || guid != second) {
		return fmt.Errorf("%s has DataWriteGuid %v, the child was made of %v: it was written since, or is another image; restore it: %w", parent.name, guid, first, ErrParentMismatch)
	}
	if a, b := im.metadata.logicalSectorSize, parent.metadata.logicalSectorSize; a != b {
		return fmt.Errorf("%s has logical sectors of %d bytes, the child of %d: %w", parent.name, b, a, ErrParentMismatch)
	}
	return nil
}
