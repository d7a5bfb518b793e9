package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// maxSiblings bounds how many images of a directory are asked for their parent.
const maxSiblings = 10000

var (
	errSiblings       = errors.New("they would not open any more")
	errChildren       = errors.New("they would not open without it")
	errChildUnknown   = errors.New("it may be a child of the image to be removed, without which it would not open")
	errSiblingUnknown = errors.New("it may be another child of the parent, which would not open any more")
)

// family is an image, and who must not be taken for its child.
type family struct {
	a            *app
	parent       os.FileInfo
	child        os.FileInfo // nil: there is none
	parentDataID string      // DataWriteGUID
	unknown      error       // what it means that an image cannot be asked
}

// refuseSiblings looks in the directories of the parent and the child for
// other children of the parent. It reads of each image there no more than
// what it says of its parent.
func (a *app) refuseSiblings(ctx context.Context, child string, parent vhdx.Layer) error {
	f := family{a: a, parentDataID: parent.DataWriteGUID, unknown: errSiblingUnknown}
	var err error
	if f.child, err = os.Stat(child); err != nil {
		return err
	}
	found, err := f.find(ctx, parent.File, child)
	if err == nil && len(found) > 0 {
		err = fmt.Errorf("%s has other children, %s: %w", parent.File, some(found), errSiblings)
	}
	return err
}

// refuseChildren looks for children of an image that is to be removed, beside
// it and beside its parent.
func (a *app) refuseChildren(ctx context.Context, image, parent vhdx.Layer) error {
	f := family{a: a, parentDataID: image.DataWriteGUID, unknown: errChildUnknown}
	found, err := f.find(ctx, image.File, parent.File)
	if err == nil && len(found) > 0 {
		err = fmt.Errorf("%s has children of its own, %s: %w", image.File, some(found), errChildren)
	}
	return err
}

// find looks for children beside the parent and beside another file.
func (f *family) find(ctx context.Context, parent, other string) ([]string, error) {
	var err error
	if f.parent, err = os.Stat(parent); err != nil {
		return nil, err
	}
	var found []string
	for _, dir := range slices.Compact([]string{realDir(parent), realDir(other)}) {
		names, err := f.childrenIn(ctx, dir)
		if err != nil {
			return nil, err
		}
		found = append(found, names...)
	}
	return found, nil
}

// some names the first three.
func some(found []string) string {
	if n := len(found) - 3; n > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(found[:3], ", "), n)
	}
	return strings.Join(found, ", ")
}

// realDir is the directory of a file under its only name.
func realDir(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	dir := filepath.Dir(path)
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		return real
	}
	return dir
}

func (f *family) childrenIn(ctx context.Context, dir string) ([]string, error) {
	all, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var found []string
	asked := 0
	for _, e := range all {
		switch strings.ToLower(filepath.Ext(e.Name())) {
		case ".vhdx", ".avhdx":
		default:
			continue
		}
		if asked++; asked > maxSiblings {
			return nil, fmt.Errorf("%s holds more than %d images: %w", dir, maxSiblings, f.unknown)
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		path := filepath.Join(dir, e.Name())
		is, err := f.isChild(path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w: %w", path, f.unknown, err)
		}
		if is {
			found = append(found, path)
		}
	}
	return found, nil
}

// isChild reports whether an image is a child of the parent: made of it
// as it is, and with no path to another file.
func (f *family) isChild(path string) (bool, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe must not hold us up
	if errors.Is(err, os.ErrNotExist) {
		return false, nil // removed meanwhile, or a link to nothing
	} else if err != nil {
		return false, err
	}
	st, err := file.Stat()
	if err != nil || !st.Mode().IsRegular() || os.SameFile(st, f.parent) || f.child != nil && os.SameFile(st, f.child) {
		return false, errors.Join(err, file.Close())
	}
	of, err := vhdx.NewOSFile(file, vhdx.FileOptions{ReadOnly: true, Buffered: true, NoLock: true})
	if err != nil {
		return false, errors.Join(err, file.Close())
	}
	defer of.Close()
	link, err := vhdx.ReadParentLink(of)
	if errors.Is(err, vhdx.ErrNotVHDX) {
		return false, nil
	}
	if err != nil || link == nil || !sameGUID(link.Linkage, f.parentDataID) && !sameGUID(link.Linkage2, f.parentDataID) {
		return false, err
	}
	for _, p := range link.Paths {
		if st, err := f.leadsTo(path, p); err == nil {
			return os.SameFile(st, f.parent), nil
		}
	}
	return true, nil // it finds no parent at all: for all we know it is this one
}

// leadsTo is the file that a path in an image's locator leads to.
func (f *family) leadsTo(image string, p vhdx.ParentPath) (os.FileInfo, error) {
	file, tried, err := f.a.parentsOf(image).OpenParent(image, p)
	if err != nil {
		return nil, err
	}
	if err := file.Close(); err != nil {
		return nil, err
	}
	return os.Stat(tried)
}

// sameGUID compares two, with braces or without, in either case of letters.
func sameGUID(a, b string) bool {
	return a != "" && strings.EqualFold(strings.Trim(a, "{}"), strings.Trim(b, "{}"))
}
