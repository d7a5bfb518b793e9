package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

var (
	errSiblings       = errors.New("they would not open any more")
	errChildren       = errors.New("they would not open without it")
	errChildUnknown   = errors.New("it may be a child of the image to be removed, without which it would not open")
	errSiblingUnknown = errors.New("it may be another child of the parent, which would not open any more")
)

// refuseSiblings looks in the directories of the parent and the child for
// other children of the parent. It reads of each image there no more than
// what it says of its parent.
func (a *app) refuseSiblings(ctx context.Context, child string, parent vhdx.Layer) error {
	st, err := os.Stat(child)
	if err != nil {
		return err
	}
	k := vhdx.Kinship{DataWriteGUID: parent.DataWriteGUID, Known: []os.FileInfo{st}, Unknown: errSiblingUnknown}
	found, err := a.children(ctx, k, parent.File, child)
	if err == nil && len(found) > 0 {
		err = fmt.Errorf("%s has other children, %s: %w", parent.File, some(found), errSiblings)
	}
	return err
}

// refuseChildren looks for children of an image that is to be removed, beside
// it and beside its parent.
func (a *app) refuseChildren(ctx context.Context, image, parent vhdx.Layer) error {
	k := vhdx.Kinship{DataWriteGUID: image.DataWriteGUID, Unknown: errChildUnknown}
	found, err := a.children(ctx, k, image.File, parent.File)
	if err == nil && len(found) > 0 {
		err = fmt.Errorf("%s has children of its own, %s: %w", image.File, some(found), errChildren)
	}
	return err
}

// children looks for children beside the parent and beside another file.
func (a *app) children(ctx context.Context, k vhdx.Kinship, parent, other string) ([]string, error) {
	var err error
	if k.Parent, err = os.Stat(parent); err != nil {
		return nil, err
	}
	k.Parents = a.parentsOf
	var found []string
	for _, dir := range slices.Compact([]string{realDir(parent), realDir(other)}) {
		names, err := k.ChildrenIn(ctx, dir)
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
