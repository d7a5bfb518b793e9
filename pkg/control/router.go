package control

import (
	"context"
	"fmt"
	"time"
)

// Locator says who has a volume's image open. A *pool.Set is one.
type Locator interface {
	Holder(ctx context.Context, volumeID string) (node string, held bool, err error)
}

// Remote gives access to the nodes that are other processes. A *wire.Client does.
type Remote interface {
	On(node string) Holder
}

// Router is a [Holder] that passes each call to the one that has the volume.
// Where nobody has, it is ErrNotHeld.
type Router struct {
	Find Locator
	// Node is the node of this very process, whose volumes Local has; "": none.
	Node  string
	Local Holder
	// Remote reaches the others; nil: there are none.
	Remote Remote
}

var _ Holder = (*Router)(nil)

func (r *Router) of(ctx context.Context, volumeID string) (Holder, error) {
	node, held, err := r.Find.Holder(ctx, volumeID)
	switch {
	case err != nil:
		return nil, fmt.Errorf("look for the holder: %w", err)
	case !held:
		return nil, fmt.Errorf("volume %s: %w: its image is closed", volumeID, ErrNotHeld)
	case r.Local != nil && node == r.Node:
		return r.Local, nil
	case r.Remote == nil:
		return nil, fmt.Errorf("volume %s: %w: node %s has it, and this process, which serves node %q alone, asks no other; do not give its pool the option local",
			volumeID, ErrUnreachable, node, r.Node)
	}
	return r.Remote.On(node), nil
}

// Freeze is [Holder.Freeze] at the holder.
func (r *Router) Freeze(ctx context.Context, volumeID, token string, limit time.Duration) (string, error) {
	h, err := r.of(ctx, volumeID)
	if err != nil {
		return "", err
	}
	return h.Freeze(ctx, volumeID, token, limit)
}

// Cut is [Holder.Cut] at the holder.
func (r *Router) Cut(ctx context.Context, volumeID, snapshotID string, o CutOptions) (CutResult, error) {
	h, err := r.of(ctx, volumeID)
	if err != nil {
		return CutResult{}, err
	}
	return h.Cut(ctx, volumeID, snapshotID, o)
}

// Thaw is [Holder.Thaw] at the holder.
func (r *Router) Thaw(ctx context.Context, volumeID, token string) error {
	h, err := r.of(ctx, volumeID)
	if err != nil {
		return err
	}
	return h.Thaw(ctx, volumeID, token)
}

// Follow is [Holder.Follow] at the holder.
func (r *Router) Follow(ctx context.Context, volumeID string) error {
	h, err := r.of(ctx, volumeID)
	if err != nil {
		return err
	}
	return h.Follow(ctx, volumeID)
}

// Report is [Holder.Report] at the holder.
func (r *Router) Report(ctx context.Context, volumeID string) (Report, error) {
	h, err := r.of(ctx, volumeID)
	if err != nil {
		return Report{}, err
	}
	return h.Report(ctx, volumeID)
}
