package vhdx

import (
	"errors"
	"fmt"
)

// The errors a caller can act on. Every error of this package wraps at most
// one of them; the text names the file and the place.
var (
	// ErrUndecided: whether the record that a rotation waits for names the child
	// is not known. The image takes no more writes.
	ErrUndecided = errors.New("not known whether it happened")
	// ErrCorrupt: the bytes break the format. Always a [*CorruptError].
	ErrCorrupt = errors.New("image is corrupt")
	// ErrNotVHDX: the file does not begin with the VHDX signature.
	ErrNotVHDX = errors.New("not a VHDX file")
	// ErrUnsupported: a valid image that needs something this package lacks.
	ErrUnsupported = errors.New("image needs an unsupported feature")
	// ErrLogReplayRequired: the log must be replayed first and the caller
	// forbade it.
	ErrLogReplayRequired = errors.New("log needs to be replayed")
	// ErrReadOnly: a write to an image opened read-only.
	ErrReadOnly = errors.New("image is read-only")
	// ErrOutOfRange: a request reaches beyond the virtual disk.
	ErrOutOfRange = errors.New("beyond the end of the virtual disk")
	// ErrDataBeyondEnd: a smaller disk would lose data, and the caller has not
	// said that it may.
	ErrDataBeyondEnd = errors.New("there is data beyond the new end of the virtual disk")
	// ErrInvalid: an option or argument that can never work.
	ErrInvalid = errors.New("invalid argument")
	// ErrPoisoned: an earlier failure left the state of the medium unknown;
	// nothing more is written. The first cause is wrapped beside it.
	ErrPoisoned = errors.New("image is poisoned by an earlier failure")
	// ErrInUse: another process or description holds the image's lock.
	ErrInUse = errors.New("image is in use")
	// ErrClosed: the image has been closed.
	ErrClosed = errors.New("image is closed")
	// ErrParentMissing: no path of the locator leads to a file. Always in a
	// [*ParentError], as are the next two.
	ErrParentMissing = errors.New("parent not found")
	// ErrParentMismatch: the parent is not the image that the child was made of.
	ErrParentMismatch = errors.New("parent is not the one its child was made of")
	// ErrParentRefused: the locator leaves the place where parents may be, the
	// chain is a cycle or too deep, or the caller allows no parents.
	ErrParentRefused = errors.New("parent is refused")
	// ErrUnrelated: two images have no ancestor in common, so that nothing but
	// their data says where they differ.
	ErrUnrelated = errors.New("images have no ancestor in common")
	// ErrJournalFull is what a [Journal] answers when a record does not fit.
	ErrJournalFull = errors.New("volatile journal is full")
)

// CorruptError says which structure of which file breaks the format, and where.
type CorruptError struct {
	File      string
	Structure string // the specification's name: "header", "region table", "BAT entry 17", ...
	Offset    int64  // in the file, bytes
	Reason    string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s: %s at offset %#x: %s: %v", e.File, e.Structure, e.Offset, e.Reason, ErrCorrupt)
}

// Is reports a match with [ErrCorrupt].
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }
