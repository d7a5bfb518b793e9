package lease

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// ErrHeld: somebody else has the lease. Always a [*HeldError].
var ErrHeld = errors.New("image is in use")

// Holder is who has a lease, as recorded for people and error messages. The
// lock decides, not this record.
type Holder struct {
	Node   string `json:"node"`
	BootID string `json:"bootId"`
	PID    int    `json:"pid"`
	// PIDSpace is the PID namespace that PID is of, Started when the process
	// started, in clock ticks since the boot: together they are one process.
	PIDSpace string    `json:"pidSpace,omitempty"`
	Started  uint64    `json:"started,omitempty"`
	Since    time.Time `json:"since"`
}

func (h Holder) String() string {
	if h.Node == "" {
		return "unknown holder"
	}
	return fmt.Sprintf("node %s (pid %d, since %s)", h.Node, h.PID, h.Since.UTC().Format(time.RFC3339))
}

// HeldError says who has it, if that is known.
type HeldError struct {
	File   string
	Holder Holder
	// Draining: the holder was a process of this very node and boot that seems
	// to be dead. The kernel keeps its lock until its last I/O is done, so the
	// lease comes free by itself, or the device below hangs.
	Draining bool
}

func (e *HeldError) Error() string {
	s := fmt.Sprintf("%s: %v: %v", e.File, ErrHeld, e.Holder)
	if e.Draining {
		s += ", which is dead or dying; its last I/O is not done yet"
	}
	return s
}

// Is reports a match with [ErrHeld].
func (e *HeldError) Is(target error) bool { return target == ErrHeld }

// Mode is what a lease allows.
type Mode int

// A Shared lease reads; an Exclusive one is the only one there is.
const (
	Exclusive Mode = iota
	Shared
)

// Lease is the right to do I/O on one image.
type Lease interface {
	// Lost is closed when the lease can no longer be proven. Whoever holds it
	// must stop issuing I/O at once.
	Lost() <-chan struct{}
	// Release ends the lease. The caller has stopped all I/O.
	Release() error
	// Holder is what was recorded.
	Holder() Holder
}

// Leaser hands out leases.
type Leaser interface {
	// Acquire takes the lease of image name on f, which must be the very
	// description that all I/O of the image will use. It waits for nobody but
	// a dead process of this node whose I/O is not done: ErrHeld.
	Acquire(ctx context.Context, name string, f *os.File, m Mode) (Lease, error)
	// Claim is an exclusive Acquire for a moment: nothing is recorded, and it
	// ends when f is closed.
	Claim(name string, f *os.File) error
}
