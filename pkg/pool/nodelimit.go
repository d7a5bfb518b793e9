package pool

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// nodeLoads counts what is attached to nodes that take only so many volumes.
// The records alone decide: it remembers for a while what they said, so that an
// attachment costs no walk over them, and looks again before it refuses one.
// Another controller that attaches in that while may exceed the limit, which is
// the scheduler's to keep.
type nodeLoads struct {
	mu sync.Mutex
	of map[string]*nodeLoad // by node
}

type nodeLoad struct {
	mu  sync.Mutex // over an attachment
	ids map[string]bool
	at  time.Time // of the walk
}

// loadTrust is how long a walk over the records is good for.
const loadTrust = time.Minute

func (l *nodeLoads) node(id string) *nodeLoad {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of == nil {
		l.of = make(map[string]*nodeLoad)
	}
	if l.of[id] == nil {
		l.of[id] = &nodeLoad{}
	}
	return l.of[id]
}

// left is told of a detachment: of node, or of all nodes for "".
func (l *nodeLoads) left(volume, node string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, n := range l.of {
		if node == "" || node == id {
			n.mu.Lock()
			delete(n.ids, volume)
			n.mu.Unlock()
		}
	}
}

// attachWithin attaches a volume unless its node has as many as it takes: ErrNodeFull.
func (s *Set) attachWithin(ctx context.Context, n Node, id string, attach func() error) error {
	load := s.loads.node(n.ID)
	load.mu.Lock()
	defer load.mu.Unlock()
	full := func() bool { return !load.ids[id] && int64(len(load.ids)) >= n.MaxVolumes }
	if time.Since(load.at) > loadTrust || full() {
		ids, err := s.attachedTo(ctx, n.ID)
		if err != nil {
			return err
		}
		load.ids, load.at = ids, time.Now()
	}
	if full() {
		return fmt.Errorf("attach volume %s to node %s: %w: it has %d, and its plugin's --max-volumes is %d",
			id, n.ID, ErrNodeFull, len(load.ids), n.MaxVolumes)
	}
	err := attach()
	if err == nil {
		load.ids[id] = true
	}
	return err
}

// attachedTo reads every record.
func (s *Set) attachedTo(ctx context.Context, node string) (map[string]bool, error) {
	ids := make(map[string]bool)
	for _, p := range s.Pools() {
		if err := p.eachRecord(ctx, func(_ string, r *record, err error) error {
			if err != nil {
				return nil //nolint:nilerr // what nobody can read is attached nowhere
			}
			for _, a := range r.Attachments {
				if a.Node == node {
					ids[r.ID] = true
				}
			}
			return nil
		}); err != nil {
			return nil, err
		}
	}
	return ids, nil
}
