package control

import (
	"context"
	"errors"
	"time"
)

var (
	// ErrNotHeld: nobody has the volume's image open, or not the node that was
	// asked. Nothing was done. Whoever wants it done looks anew: either another
	// node has it, or the image can be worked on where it lies.
	ErrNotHeld = errors.New("volume is not open on the node")
	// ErrUnreachable: the node that has the volume does not answer. Not final:
	// what was asked for may have happened.
	ErrUnreachable = errors.New("the node does not answer")
	// ErrFrozenNoMore: the freeze that a cut was to be part of has ended.
	// Nothing was cut.
	ErrFrozenNoMore = errors.New("the freeze has ended")
)

// What a snapshot may be relied on for.
const (
	// ConsistencyFilesystem: the filesystem was synced and frozen around it.
	ConsistencyFilesystem = "filesystem"
	// ConsistencyCrash: as after a power cut at that moment.
	ConsistencyCrash = "crash"
)

// Holder does what has to be done where a volume's image is open. All of it can
// be repeated. Each call may be ErrNotHeld.
type Holder interface {
	// Freeze syncs the volume's mounted filesystem and lets nothing be written to
	// it until Thaw, or until limit has passed, whatever happens to the caller or
	// the plugin meanwhile. The answer is what a snapshot taken now is good for:
	// ConsistencyCrash where there is no filesystem, or somebody else froze it.
	// With the token of a freeze that lasts it is success.
	Freeze(ctx context.Context, volumeID, token string, limit time.Duration) (consistency string, err error)
	// Cut makes what the volume is now into the snapshot, and has the volume go
	// on in a new head. The snapshot's record exists before, and says when it is
	// done, so that a repeated Cut changes nothing. ErrFrozenNoMore.
	Cut(ctx context.Context, volumeID, snapshotID string, o CutOptions) (CutResult, error)
	// Thaw ends the freeze of this token. Success if there is none.
	Thaw(ctx context.Context, volumeID, token string) error
	// Follow makes the open image follow the volume's record: its size, its
	// limits, the chain below its head.
	Follow(ctx context.Context, volumeID string) error
	// Report says what is wrong with the volume.
	Report(ctx context.Context, volumeID string) (Report, error)
}

// CutOptions says what is done around a cut.
type CutOptions struct {
	// Freeze has the filesystem frozen around it, for Limit at most.
	Freeze bool
	Limit  time.Duration
	// Token is that of a Freeze which must still last; "" for none. It excludes
	// Freeze.
	Token string
}

// CutResult is what a cut cost and what it is good for. A repeated one, which
// does nothing, may have zero for what it cost.
type CutResult struct {
	Pause       time.Duration // in which the volume's I/O waited
	Frozen      time.Duration // in which its filesystem was frozen
	Consistency string
}

// Status is how bad something is for a volume.
type Status string

// The statuses, as CSI has them.
const (
	StatusDegraded     Status = "degraded"
	StatusInaccessible Status = "inaccessible"
	StatusDataLoss     Status = "dataLoss"
)

// Report is all that is wrong with a volume; nothing is health.
type Report struct {
	Entries []Entry
}

// Entry is one thing that is wrong. Reason is one CamelCase word for programs,
// Message is for people.
type Entry struct {
	Status  Status
	Reason  string
	Message string
}
