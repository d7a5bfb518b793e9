package main

import (
	"sync"
	"sync/atomic"

	"k8s.io/klog/v2"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/supervisor"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/node"
)

// heart beats for a worker while its block devices are served. A worker whose
// server hangs by its own fault is killed by the supervisor when the beats end,
// and its successor goes on with what the devices wait for.
type heart struct {
	link *supervisor.Link // nil: there is no supervisor
	node atomic.Pointer[node.Manager]
	hang sync.Once
}

// beatsFor makes the heart follow the devices of m.
func (h *heart) beatsFor(m *node.Manager) { h.node.Store(m) }

func (h *heart) alive() bool {
	m := h.node.Load()
	if m == nil {
		return true
	}
	id, err := m.Alive()
	if err == nil {
		return true
	}
	h.hang.Do(func() {
		klog.ErrorS(err, "The server of a volume hangs; this process has to be replaced", "volume", id)
		h.link.Accuse(id)
	})
	return false
}
