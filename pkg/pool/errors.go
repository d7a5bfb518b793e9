package pool

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// The errors a caller can act on. Every error of this package wraps at most
// one of them, ErrBusy aside; the text names the volume or file and the way out.
var (
	// ErrNotFound: no volume has this id. Malformed ids and ids of pools this
	// process does not serve are included.
	ErrNotFound = errors.New("volume not found")
	// ErrNoSnapshot: no snapshot has this id, or it has not been taken.
	ErrNoSnapshot = errors.New("snapshot not found")
	// ErrChainFull: the volume has as many images as there can be. Snapshots
	// have to be deleted; the background work makes fewer images of the rest.
	ErrChainFull = errors.New("too many snapshots")
	// ErrNotTogether: volumes that no one point in time can be taken of.
	ErrNotTogether = errors.New("volumes cannot be taken together")
	// ErrConflict: a volume or snapshot of this name exists with another size,
	// source or other parameters.
	ErrConflict = errors.New("this name is taken by something that differs")
	// ErrNoSpace: the pool's policy or its filesystem has no room. Always a [*SpaceError].
	ErrNoSpace = errors.New("not enough room in the pool")
	// ErrInvalid: an argument that can never work.
	ErrInvalid = errors.New("invalid argument")
	// ErrOutOfRange: a size that no volume can have: not between required and
	// limit once rounded to sectors, or above the format's largest.
	ErrOutOfRange = errors.New("size is out of range")
	// ErrInUse: the image is open somewhere, or the volume is attached.
	ErrInUse = errors.New("volume is in use")
	// ErrAttachedElsewhere: another node has the volume. Always an [*AttachedError].
	ErrAttachedElsewhere = errors.New("volume is attached to another node")
	// ErrIncompatible: attached to this very node, but with the other readOnly.
	ErrIncompatible = errors.New("volume is attached to this node in another mode")
	// ErrNodeFull: the node has as many volumes as it takes.
	ErrNodeFull = errors.New("node takes no more volumes")
	// ErrNoNode: no node of this id is registered.
	ErrNoNode = errors.New("node is not registered")
	// ErrNoPool: no pool of this name is served here.
	ErrNoPool = errors.New("no such pool")
	// ErrAway: the pool's directory does not answer, is not there, or cannot be
	// written, and is tried again. Not final.
	ErrAway = errors.New("the pool is not available, and is tried again")
	// ErrBadToken: a list token that this package did not make.
	ErrBadToken = errors.New("invalid list token")
	// ErrUnsafeShare: the pool's filesystem is mounted in a way that can lose
	// or corrupt data. Always an [*UnsafeShareError].
	ErrUnsafeShare = errors.New("the share is not safe for writers")
	// ErrNotWritable: the pool's filesystem does not let this process write.
	ErrNotWritable = errors.New("the pool cannot be written")
	// ErrNotAPool: the directory is no pool, and not empty, so none is made of it.
	ErrNotAPool = errors.New("directory is not a pool")
	// ErrFormat: a marker or record of a format version this program does not know.
	ErrFormat = errors.New("format version is not supported")
	// ErrDamaged: a record that this operation needs cannot be read. It is
	// also in [Set.Problems]; nothing is guessed or overwritten.
	ErrDamaged = errors.New("record is damaged")
	// ErrBusy: try again. Another operation has the volume's lock for longer
	// than the context allows, took this one over, or a dead process of this
	// node still has I/O under way on the image; or what failed could not be undone
	// either. It may come with the reason, which is another of these.
	ErrBusy = errors.New("volume is busy with another operation")
)

// notWritable adds the way out to what the filesystem says where it lets nobody
// write, or not this process.
func (p *Pool) notWritable(err error) error {
	if told := wayOut(err); told != err { //nolint:errorlint // it is the same one, or not
		return fmt.Errorf("pool %s: %w", p.name, told)
	}
	return err
}

func wayOut(err error) error {
	switch {
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w: its filesystem is mounted read-only; mount it read-write: %w", ErrNotWritable, err)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w as user %d and group %d; give the directory and all that is in it to that group, with mode 2770 (and see that the server does not squash it): %w",
			ErrNotWritable, os.Geteuid(), os.Getegid(), err)
	}
	return err
}

// AttachedError says which node has the volume.
type AttachedError struct {
	Volume, Node string
}

func (e *AttachedError) Error() string {
	return fmt.Sprintf("volume %s: %v: %s", e.Volume, ErrAttachedElsewhere, e.Node)
}

// Is reports a match with [ErrAttachedElsewhere].
func (e *AttachedError) Is(target error) bool { return target == ErrAttachedElsewhere }

// SpaceError says how much was wanted and which bound forbids it.
type SpaceError struct {
	Pool       string
	Want, Have int64
	Bound      string // "the bound on committed bytes" or "the free space of the filesystem"
}

func (e *SpaceError) Error() string {
	return fmt.Sprintf("pool %s: %v: %d bytes wanted, %d left by %s; make room on the share, delete volumes, or, for dynamic volumes, raise the pool's overcommit",
		e.Pool, ErrNoSpace, e.Want, e.Have, e.Bound)
}

// Is reports a match with [ErrNoSpace].
func (e *SpaceError) Is(target error) bool { return target == ErrNoSpace }

// UnsafeShareError names each mount option that is unsafe, and why.
type UnsafeShareError struct {
	Dir     string
	FSType  string
	Reasons []UnsafeOption
}

// UnsafeOption is one mount option and what it endangers.
type UnsafeOption struct {
	Option, Why string
}

func (e *UnsafeShareError) Error() string {
	s := fmt.Sprintf("%s (%s): %v:", e.Dir, e.FSType, ErrUnsafeShare)
	for i, r := range e.Reasons {
		if i > 0 {
			s += ";"
		}
		s += " " + r.Option + ": " + r.Why
	}
	return s
}

// Is reports a match with [ErrUnsafeShare].
func (e *UnsafeShareError) Is(target error) bool { return target == ErrUnsafeShare }
