package driver

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// fakeHealth is pools, this node and all other nodes. It knows what it is told.
type fakeHealth struct {
	mu    sync.Mutex
	looks []pool.Look                // in the order of the list
	trees map[string]pool.Figures    // by pool
	here  map[string][]control.Entry // by volume
	nodes map[string]fakeNode
	asked []string
	hold  chan struct{} // if set, a look waits for it
}

type fakeNode struct {
	control.Holder
	h    *fakeHealth
	name string
	rep  map[string][]control.Entry // by volume; not there: not held
	err  error
	hold chan struct{} // if set, an answer waits for it
}

func (h *fakeHealth) PoolOf(id string) (string, error) {
	name, _, ok := strings.Cut(id, "-")
	if !ok {
		return "", pool.ErrNotFound
	}
	return name, nil
}

func (h *fakeHealth) Look(_ context.Context, id string) (pool.Look, error) {
	if h.hold != nil {
		<-h.hold
	}
	for _, l := range h.looks {
		if l.Volume.ID == id {
			return l, nil
		}
	}
	return pool.Look{}, pool.ErrNotFound
}

// LookAll has tokens that are ids.
func (h *fakeHealth) LookAll(_ context.Context, token string, n int) ([]pool.Look, string, error) {
	i := 0
	if token != "" {
		i = 1 + slices.IndexFunc(h.looks, func(l pool.Look) bool { return l.Volume.ID == token })
		if i == 0 {
			return nil, "", pool.ErrBadToken
		}
	}
	page := h.looks[i:min(i+n, len(h.looks))]
	if i+len(page) == len(h.looks) {
		return page, "", nil
	}
	return page, page[len(page)-1].Volume.ID, nil
}

func (h *fakeHealth) After(id string) (string, error) { return id, nil }

func (h *fakeHealth) figures() (all []pool.Figures) {
	for name, f := range h.trees {
		f.Pool = name
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b pool.Figures) int { return strings.Compare(a.Pool, b.Pool) })
	return all
}

func (h *fakeHealth) Report(_ context.Context, id string) (control.Report, error) {
	e, ok := h.here[id]
	if !ok {
		return control.Report{}, control.ErrNotHeld
	}
	return control.Report{Entries: e}, nil
}

func (h *fakeHealth) On(node string) (control.Holder, error) {
	n, ok := h.nodes[node]
	if !ok {
		return nil, errors.New("no such node")
	}
	n.h, n.name = h, node
	return n, nil
}

func (n fakeNode) Report(_ context.Context, id string) (control.Report, error) {
	n.h.mu.Lock()
	n.h.asked = append(n.h.asked, n.name+" "+id)
	n.h.mu.Unlock()
	if n.hold != nil {
		<-n.hold
	}
	e, ok := n.rep[id]
	if n.err == nil && !ok {
		return control.Report{}, control.ErrNotHeld
	}
	return control.Report{Entries: e}, n.err
}

// Never in these tests.
func (fakeNode) Freeze(context.Context, string, string, time.Duration) (string, error) {
	panic("freeze")
}
