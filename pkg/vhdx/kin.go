package vhdx

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxKin bounds how many images of a directory are asked for their parent.
const maxKin = 10000

// Kinship is a search for the children of an image, which would not open any more
// without it, among files.
type Kinship struct {
	Parent        os.FileInfo
	DataWriteGUID string // of the parent
	// Known are children and others that need not be asked.
	Known []os.FileInfo
	// Parents is where the parents of an image may be.
	Parents func(image string) ParentOpener
	// Unknown is the error of an image that cannot be asked, or of too many; nil: it
	// is passed over.
	Unknown error
}

// ChildrenIn returns the images directly in a directory, files named .vhdx or
// .avhdx, at most 10,000 of them, that were made of the parent as it is. It reads
// of each no more than what it says of its parent.
func (k Kinship) ChildrenIn(ctx context.Context, dir string) ([]string, error) {
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
		if asked++; asked > maxKin && k.Unknown != nil {
			return nil, fmt.Errorf("%s holds more than %d images: %w", dir, maxKin, k.Unknown)
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		path := filepath.Join(dir, e.Name())
		is, err := k.isChild(path)
		if err != nil && k.Unknown != nil {
			return nil, fmt.Errorf("%s: %w: %w", path, k.Unknown, err)
		}
		if is {
			found = append(found, path)
		}
	}
	return found, nil
}

// isChild reports whether an image is a child of the parent: made of it
// as it is, and with no path to another file.
func (k Kinship) isChild(path string) (bool, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe must not hold us up
	if errors.Is(err, os.ErrNotExist) {
		return false, nil // removed meanwhile, or a link to nothing
	} else if err != nil {
		return false, err
	}
	st, err := file.Stat()
	known := func(other os.FileInfo) bool { return os.SameFile(st, other) }
	if err != nil || !st.Mode().IsRegular() || known(k.Parent) || slices.ContainsFunc(k.Known, known) {
		return false, errors.Join(err, file.Close())
	}
	of, err := NewOSFile(file, FileOptions{ReadOnly: true, Buffered: true, NoLock: true})
	if err != nil {
		return false, errors.Join(err, file.Close())
	}
	defer of.Close()
	link, err := ReadParentLink(of)
	if errors.Is(err, ErrNotVHDX) {
		return false, nil
	}
	if err != nil || link == nil || !link.Accepts(k.DataWriteGUID) {
		return false, err
	}
	for _, p := range link.Paths {
		if st, err := k.leadsTo(path, p); err == nil {
			return os.SameFile(st, k.Parent), nil
		}
	}
	return true, nil // it finds no parent at all: for all we know it is this one
}

// leadsTo is the file that a path in an image's locator leads to.
func (k Kinship) leadsTo(image string, p ParentPath) (os.FileInfo, error) {
	file, tried, err := k.Parents(image).OpenParent(image, p)
	if err != nil {
		return nil, err
	}
	if err := file.Close(); err != nil {
		return nil, err
	}
	return os.Stat(tried)
}

// Accepts reports whether an image of this DataWriteGuid is the parent that the
// child was made of. GUIDs are compared with braces or without, in either case of letters.
func (l *ParentLink) Accepts(dataWriteGUID string) bool {
	return sameGUID(l.Linkage, dataWriteGUID) || sameGUID(l.Linkage2, dataWriteGUID)
}

func sameGUID(a, b string) bool {
	return a != "" && strings.EqualFold(strings.Trim(a, "{}"), strings.Trim(b, "{}"))
}
