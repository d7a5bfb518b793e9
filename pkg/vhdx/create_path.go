package vhdx

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// Create writes a new image at path, with mode 0600. An existing path is
// refused ([fs.ErrExist]) and never replaced.
//
// The image is written to a [Draft], synced, given its name in one step, and
// the directory is synced: path never names half an image, and after an error
// nothing is left. A kill leaves nothing either where the filesystem can have
// files without a name.
func Create(path string, o CreateOptions) (Created, error) {
	if _, err := o.complete(); err != nil {
		return Created{}, fmt.Errorf("create %s: %w", path, err)
	}
	return createPath(path, func(f File) (Created, error) { return CreateOn(f, o) })
}

// createPath gives what createOn writes the name path.
func createPath(path string, createOn func(File) (Created, error)) (Created, error) {
	if _, err := os.Lstat(path); err == nil {
		return Created{}, &os.PathError{Op: "create", Path: path, Err: fs.ErrExist}
	}
	d, err := NewDraft(path)
	if err != nil {
		return Created{}, err
	}
	done, err := createDraft(d, createOn)
	if err == nil {
		err = d.Publish(false)
	}
	if err = errors.Join(err, d.Close()); err != nil {
		return Created{}, err
	}
	return done, nil
}

func createDraft(d *Draft, createOn func(File) (Created, error)) (Created, error) {
	dup, err := d.Open()
	if err != nil {
		return Created{}, err
	}
	f, err := NewOSFile(dup, FileOptions{NoLock: true})
	if err != nil {
		return Created{}, errors.Join(err, dup.Close())
	}
	done, err := createOn(draftFile{f})
	return done, errors.Join(err, f.Close())
}

// draftFile leaves syncing to [Draft.Publish]: until then the file has no name,
// or a temporary one that nobody opens, and what of it is durable does not matter.
type draftFile struct{ *OSFile }

// Sync does nothing.
func (draftFile) Sync() error { return nil }
