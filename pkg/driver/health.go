package driver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/node"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// Looker says what the pools know of volumes without opening them. *[pool.Set] has it.
type Looker interface {
	PoolOf(volumeID string) (string, error)
	Look(ctx context.Context, volumeID string) (pool.Look, error)
	LookAll(ctx context.Context, token string, max int) ([]pool.Look, string, error)
	After(volumeID string) (token string, err error)
}

// Reporter says what is wrong with a volume of this node, from memory.
// control.ErrNotHeld where it knows nothing of it. *[node.Manager] has it.
type Reporter interface {
	Report(ctx context.Context, volumeID string) (control.Report, error)
}

// Nodes gives access to the node that a volume is attached to. *[control.Router] has it.
type Nodes interface {
	On(node string) (control.Holder, error)
}

// Health is what the health calls of both services stand on.
type Health struct {
	Pools Looker
	// Figures are the newest of all pools. It must not wait.
	Figures func() []pool.Figures
	// Here is this node; nil without a node service.
	Here Reporter
	// Nodes that can be asked; nil: none.
	Nodes Nodes
}

func (h Health) check(hasNode bool) error {
	if h.Pools == nil || h.Figures == nil || hasNode && h.Here == nil {
		return errors.New("the health calls need the pools, their figures and, with a node service, the node")
	}
	return nil
}

// The calls are polled for all volumes, and most of all when something hangs. So
// each has its own patience, below what its caller has, and its own places.
const (
	lookPatience = 3 * time.Second // with a share
	askPatience  = 5 * time.Second // with a node
	maxLooks     = 8               // that one pool may keep waiting
	maxAsks      = 64
)

// healthView is Health with its bounds.
type healthView struct {
	Health
	asks reads

	mu    sync.Mutex
	looks map[string]reads // by pool, so that one that hangs holds up no other
}

func newHealthView(h Health) *healthView {
	return &healthView{Health: h, asks: make(reads, maxAsks), looks: map[string]reads{}}
}

func (h *healthView) places(pool string) reads {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.looks[pool] == nil {
		h.looks[pool] = make(reads, maxLooks)
	}
	return h.looks[pool]
}

// away is why a pool does not answer, nil if it does: from memory.
func (h *healthView) away(name string) error {
	for _, f := range h.Figures() {
		if f.Pool == name && f.Err != nil {
			return fmt.Errorf("%w: %w", pool.ErrAway, f.Err)
		}
	}
	return nil
}

// awayOf is away for a volume's pool. ErrNotFound: no pool has such a volume.
func (h *healthView) awayOf(id string) (name string, away, err error) {
	name, err = h.Pools.PoolOf(id)
	switch {
	case errors.Is(err, pool.ErrAway):
		return name, err, nil
	case err != nil:
		return name, nil, err
	}
	return name, h.away(name), nil
}

// look asks the pool about a volume. What the answer to that is not, a share that
// hangs included, is wrong with the volume and not an error, but for ErrNotFound.
func (h *healthView) look(ctx context.Context, id string) (pool.Look, error) {
	name, away, err := h.awayOf(id)
	if err != nil {
		return pool.Look{}, err
	}
	l := pool.Look{Volume: pool.Volume{ID: id, Pool: name}, Err: away}
	if away != nil {
		return l, nil
	}
	patient, cancel := context.WithTimeout(ctx, lookPatience)
	defer cancel()
	got, err := read(patient, h.places(name), func(ctx context.Context) (pool.Look, error) { return h.Pools.Look(ctx, id) })
	switch {
	case err == nil:
		return got, nil
	case errors.Is(err, pool.ErrNotFound):
		return pool.Look{}, err
	case ctx.Err() != nil:
		return pool.Look{}, fmt.Errorf("look at volume %s: %w", id, ctx.Err())
	}
	l.Err = fmt.Errorf("pool %s: %w: %w", name, pool.ErrAway, err)
	return l, nil
}

// ask asks the node that a volume is attached to. Nothing there is nothing wrong.
func (h *healthView) ask(ctx context.Context, name, id string) ([]control.Entry, error) {
	if h.Nodes == nil {
		return nil, nil
	}
	on, err := h.Nodes.On(name)
	if err != nil {
		return nil, err
	}
	patient, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	rep, err := read(patient, h.asks, func(ctx context.Context) (control.Report, error) { return on.Report(ctx, id) })
	switch {
	case err == nil:
		return rep.Entries, nil
	case errors.Is(err, control.ErrNotHeld):
		return nil, nil
	}
	return nil, fmt.Errorf("node %s, to which the volume is attached: %w", name, err)
}

// whole is everything that is wrong with a volume, as its pool and the nodes that
// it is attached to have it. deaf are nodes that have not answered, and are not
// asked again.
func (h *healthView) whole(ctx context.Context, l pool.Look, deaf *sync.Map) []control.Entry {
	all := entries(l.Err)
	for _, a := range l.Volume.Attachments {
		if e, known := deaf.Load(a.Node); known {
			all = append(all, e.(control.Entry)) //nolint:forcetypeassert // nothing else is put in
			continue
		}
		got, err := h.ask(ctx, a.Node, l.Volume.ID)
		if err != nil {
			e := control.NodeUnreachable.Because(err)
			if errors.Is(err, control.ErrUnreachable) || errors.Is(err, context.DeadlineExceeded) {
				deaf.Store(a.Node, e)
			}
			got = []control.Entry{e}
		}
		all = append(all, got...)
	}
	return all
}

// entries says what an error of a pool shows.
func entries(err error) []control.Entry {
	if err == nil {
		return nil
	}
	c, known := node.Diagnose(err)
	if !known {
		c = control.PoolUnreachable // the only thing asked was whether it is there
	}
	return []control.Entry{c.Because(err)}
}

// types are the statuses as CSI has them, from the worst down.
var types = map[control.Status]csi.VolumeHealthErrorType{
	control.StatusDegraded:     csi.VolumeHealthErrorType_DEGRADED,
	control.StatusInaccessible: csi.VolumeHealthErrorType_INACCESSIBLE,
	control.StatusDataLoss:     csi.VolumeHealthErrorType_DATA_LOSS,
}

// volumeHealth is what is sent: each condition once, the worst first.
func volumeHealth(id string, all []control.Entry) *csi.VolumeHealth {
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b control.Entry) int { return cmp.Compare(types[b.Status], types[a.Status]) })
	h := &csi.VolumeHealth{VolumeId: id}
	seen := map[control.Condition]bool{}
	for _, e := range all {
		c := control.Condition{Status: e.Status, Reason: e.Reason}
		if seen[c] {
			continue
		}
		seen[c] = true
		h.HealthStatuses = append(h.HealthStatuses, &csi.VolumeHealth_VolumeHealthEntry{
			Status: types[e.Status], Reason: e.Reason, Message: scrub(e.Message)})
	}
	return h
}
