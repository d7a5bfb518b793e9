package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool/lease"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

const (
	// drainPatience is how long the I/O of a dead process may take to end. Its
	// lock lives until then, and nothing may be read before (seen: 4.7 s).
	drainPatience = 15 * time.Second
	drainStep     = time.Millisecond // at first; twice as long each time
	drainStepMax  = 50 * time.Millisecond
)

// attached returns the record of a volume that this node may stage.
func (m *Manager) attached(ctx context.Context, id string, readOnly bool) (pool.Volume, error) {
	rec, err := m.cfg.Volumes.Volume(ctx, id)
	if err != nil {
		return rec, err
	}
	for _, a := range rec.Attachments {
		switch {
		case a.Node != m.cfg.NodeID:
			continue
		case a.ReadOnly && !readOnly:
			return rec, fmt.Errorf("%w: it is attached to this node read-only", ErrIncompatible)
		}
		return rec, nil
	}
	return rec, fmt.Errorf("%w: %s (ControllerPublishVolume comes first)", ErrNotAttached, m.cfg.NodeID)
}

// openImage opens the image. Where a process of this node that is no more
// still has I/O under way on it, the open waits for the end of that.
func (m *Manager) openImage(ctx context.Context, id string, readOnly bool, j vhdx.Journal) (image, error) {
	step := drainStep
	for end := time.Now().Add(m.patience); ; step = min(2*step, drainStepMax) {
		im, err := m.openGuarded(ctx, id, readOnly, j)
		if err == nil {
			if r := im.Info().Replay; r.Entries > 0 {
				klog.FromContext(ctx).Info("Replayed the image's log", "volume", id, "entries", r.Entries, "pages", r.Pages, "took", r.Took)
				m.cfg.Replayed(r)
			}
			return im, nil
		}
		if !errors.Is(err, pool.ErrInUse) {
			return nil, err
		}
		// The state directory is locked: nobody else of this node's plugin lives.
		h, _ := errors.AsType[*lease.HeldError](err)
		ours := h != nil && h.Holder.Node == m.cfg.NodeID
		if h != nil && h.Holder.Node != "" && !ours {
			return nil, err
		}
		if time.Now().After(end) {
			if ours {
				return nil, fmt.Errorf("%w: I/O of a dead process has not ended yet: %w", ErrPending, err)
			}
			return nil, err
		}
		select {
		case <-time.After(step):
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), err)
		}
	}
}
