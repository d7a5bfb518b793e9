package node

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// maxFailures bounds how many volumes that could not be staged are remembered.
const maxFailures = 256

// failure is why the last Stage of a volume failed.
type failure struct {
	err error
	at  time.Time
}

// passing says nothing of the volume: somebody else is at work, the caller asked
// for what cannot be, or gave up.
var passing = []error{
	ErrPending, ErrInvalid, ErrIncompatible, ErrNotFound, pool.ErrNotFound, ErrNotAttached, pool.ErrBusy,
	context.Canceled, context.DeadlineExceeded,
}

// stageEnded remembers how a Stage ended: the orchestrator may ask for the health
// of a volume that could not be staged.
func (m *Manager) stageEnded(id string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		delete(m.failed, id)
		return
	}
	if slices.ContainsFunc(passing, func(p error) bool { return errors.Is(err, p) }) {
		return
	}
	if _, there := m.failed[id]; !there && len(m.failed) >= maxFailures {
		oldest := ""
		for other, f := range m.failed {
			if oldest == "" || f.at.Before(m.failed[oldest].at) {
				oldest = other
			}
		}
		delete(m.failed, oldest)
	}
	m.failed[id] = failure{err, time.Now()}
}

// forgetHistory drops the failures of volumes that this node has no more to do
// with: Kubernetes does not unstage what could not be staged.
func (m *Manager) forgetHistory(ctx context.Context) {
	m.mu.Lock()
	var ids []string
	for id := range m.failed {
		ids = append(ids, id)
	}
	m.mu.Unlock()
	for _, id := range ids {
		rec, err := m.cfg.Volumes.Volume(ctx, id)
		here := slices.ContainsFunc(rec.Attachments, func(a pool.Attachment) bool { return a.Node == m.cfg.NodeID })
		if errors.Is(err, pool.ErrNotFound) || err == nil && !here {
			m.change(func() { delete(m.failed, id) })
		}
	}
}
