package pool

import (
	"context"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// Set is all pools of a process. A volume id names its pool, so no call asks
// more than one.
type Set struct{}

// NewSet joins pools of distinct names. The first is the default.
func NewSet(pools ...*Pool) (*Set, error) { panic("stub") }

// Close closes every pool.
func (s *Set) Close() error { panic("stub") }

// Pool returns the pool of this name, the default one for "". ErrNoPool lists
// the names there are.
func (s *Set) Pool(name string) (*Pool, error) { panic("stub") }

// Pools returns all pools, the default first.
func (s *Set) Pools() []*Pool { panic("stub") }

// CreateVolume makes the volume or returns the one of that name that fits.
// ErrConflict, ErrNoSpace, ErrInvalid, ErrOutOfRange, ErrNoPool.
func (s *Set) CreateVolume(ctx context.Context, spec Spec) (Volume, error) { panic("stub") }

// DeleteVolume removes a volume. Unknown ids are success. ErrInUse while its
// image is open or it is attached.
func (s *Set) DeleteVolume(ctx context.Context, id string) error { panic("stub") }

// Volume returns a volume. ErrNotFound.
func (s *Set) Volume(ctx context.Context, id string) (Volume, error) { panic("stub") }

// List returns at most max volumes (0: 1000) from where token says, and the
// token to go on with, "" at the end. The order is that of the pools and then
// of the ids, and stays. ErrBadToken.
func (s *Set) List(ctx context.Context, token string, max int) ([]Volume, string, error) {
	panic("stub")
}

// Resize records the size the volume shall have (never less than it has) and
// grows the image unless somebody has it open; its holder then does.
// ErrNotFound, ErrNoSpace, ErrOutOfRange.
func (s *Set) Resize(ctx context.Context, id string, size int64) (Volume, error) { panic("stub") }

// Attach records that node may stage the volume. ErrNotFound, ErrNoNode,
// ErrAttachedElsewhere, ErrIncompatible.
func (s *Set) Attach(ctx context.Context, id, node string, readOnly bool) error { panic("stub") }

// Detach takes the record of it back: of node, or of all nodes for "".
// Success if there is none. ErrInUse while a node it concerns has the image open.
func (s *Set) Detach(ctx context.Context, id, node string) error { panic("stub") }

// SetUse records the volume's use durably. ErrNotFound; ErrInvalid for a step
// that [Use] does not have.
func (s *Set) SetUse(ctx context.Context, id string, u Use) error { panic("stub") }

// BeginFormat is SetUse(UseFormatting) that also records, durably and at once,
// the filesystem it is being formatted with.
func (s *Set) BeginFormat(ctx context.Context, id, fsType string) error { panic("stub") }

// OpenImage opens the volume's image through its lease: at most one writer on
// all nodes. Closing the image ends the lease. ErrNotFound, ErrInUse.
func (s *Set) OpenImage(ctx context.Context, id string, readOnly bool, o vhdx.OpenOptions) (*vhdx.Image, error) {
	panic("stub")
}

// RegisterNode makes the node known in every pool.
func (s *Set) RegisterNode(ctx context.Context, n Node) error { panic("stub") }

// Node returns a registered node. ErrNoNode.
func (s *Set) Node(ctx context.Context, id string) (Node, error) { panic("stub") }

// Problems names what does not belong in the pools or cannot be read. It reads
// every record.
func (s *Set) Problems(ctx context.Context) []Problem { panic("stub") }
