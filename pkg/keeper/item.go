package keeper

import (
	"errors"
	"fmt"
	"os"
)

// Limits of one [Item].
const (
	MaxID    = 128     // bytes
	MaxMeta  = 4 << 10 // bytes
	MaxFiles = 4
	// MaxJournal is the greatest size of one memfd.
	MaxJournal = 64 << 20
)

// Item is what is kept for one volume.
type Item struct {
	ID         string
	Generation uint64 // at least 1
	Meta       []byte
	// Files: character devices, sockets, and memfds sealed with
	// F_SEAL_SHRINK and F_SEAL_GROW. Those that Get returns are the caller's.
	// Such an os.File of a non-blocking descriptor is in Go's poller, which
	// then wakes up for each of its events: to do I/O on one, duplicate its
	// descriptor and close the os.File.
	Files []*os.File
}

// Close closes the files of an item that Get returned.
func (i Item) Close() error {
	var errs []error
	for _, f := range i.Files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// The errors a caller can act on.
var (
	// ErrNotFound: nothing is kept for this id.
	ErrNotFound = errors.New("keeper holds nothing for this volume")
	// ErrStale: the keeper holds another generation; for Put a newer or the same one.
	ErrStale = errors.New("keeper holds another generation")
	// ErrFull: a bound of the keeper is reached.
	ErrFull = errors.New("keeper is full")
	// ErrInvalid: the item is none that can be kept.
	ErrInvalid = errors.New("not an item that can be kept")
	// ErrVersion: client and keeper have no version of the protocol in common.
	ErrVersion = errors.New("keeper speaks another protocol")
	// ErrRefused: the keeper serves root only.
	ErrRefused = errors.New("keeper refuses this process")
	// ErrHolding: the keeper holds items and was not forced to end.
	ErrHolding = errors.New("keeper holds devices")
	// ErrRevoked: a later client of the same owner has taken this one's place.
	ErrRevoked = errors.New("another process serves these volumes now")
	// ErrUnavailable: no keeper answers.
	ErrUnavailable = errors.New("no keeper answers")
)

func (i Item) check() error {
	var what string
	switch {
	case i.ID == "" || len(i.ID) > MaxID:
		what = fmt.Sprintf("its id has %d bytes, 1 to %d are possible", len(i.ID), MaxID)
	case i.Generation == 0:
		what = "it has no generation"
	case len(i.Meta) > MaxMeta:
		what = fmt.Sprintf("its meta has %d bytes, %d are possible", len(i.Meta), MaxMeta)
	case len(i.Files) > MaxFiles:
		what = fmt.Sprintf("it has %d files, %d are possible", len(i.Files), MaxFiles)
	default:
		return nil
	}
	return fmt.Errorf("%q: %s: %w", i.ID[:min(len(i.ID), MaxID)], what, ErrInvalid)
}
