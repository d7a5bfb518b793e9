package node

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
)

// State is what a volume on this node is at.
type State string

// The states of a volume that this node knows. A volume has exactly one.
const (
	// StateServing: its device is served.
	StateServing State = "serving"
	// StateChanging: a call brings it up or takes it down.
	StateChanging State = "changing"
	// StateWaiting: its device waits for its server since an earlier process
	// died; requests are held, none has failed.
	StateWaiting State = "waiting"
	// StateQuarantined: it waits because it has killed its server too often.
	StateQuarantined State = "quarantined"
	// StatePoisoned: its device is served, but the image takes no write any more.
	StatePoisoned State = "poisoned"
	// StatePaused: its device is served, but writes wait for space on the share.
	StatePaused State = "paused"
	// StateReadOnly: its device is served, but its filesystem has stopped for an
	// error. It was so at the last look; see [Manager.Watch].
	StateReadOnly State = "readonly"
	// StateDead: its device has failed, or can never be served again.
	StateDead State = "dead"
	// StateLeft: something of it is left that could not be taken down.
	StateLeft State = "left"
	// StateFailed: nothing of it is here, for it could not be staged.
	StateFailed State = "failed"
)

// States are all of them.
var States = []State{StateServing, StateChanging, StateWaiting, StateQuarantined, StatePoisoned, StatePaused, StateReadOnly, StateDead, StateLeft, StateFailed}

// Status is how a volume of this node is.
type Status struct {
	VolumeID string
	State    State
	// Err says why, unless it is served or changing.
	Err error
	// Paused since when, and how many requests.
	Paused blockdev.Pause
	// Wrong is what that means for the volume.
	Wrong []control.Entry
	// Count of what its device has done; nil: it has none here.
	Count *blockdev.Counters
}

// Volumes lists the volumes that this node knows, or could not stage, by id. It
// answers from memory, whatever hangs.
func (m *Manager) Volumes() []Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]Status, 0, len(m.volumes)+len(m.failed))
	for id := range m.volumes {
		s, _ := m.status(id)
		all = append(all, s)
	}
	for id := range m.failed {
		if m.volumes[id] == nil {
			s, _ := m.status(id)
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b Status) int { return strings.Compare(a.VolumeID, b.VolumeID) })
	return all
}

// state is called under Manager.mu.
func (v *volume) state(busy bool) (State, error) {
	switch {
	case v.dev != nil && ended(v.dev):
		return StateDead, dead(v.dev)
	case v.up():
		if p, ok := v.image.(interface{ Poisoned() error }); ok && p.Poisoned() != nil {
			return StatePoisoned, p.Poisoned()
		}
		if err := v.goingOn(); err != nil {
			return StatePaused, err
		}
		if v.fault != "" {
			return StateReadOnly, fmt.Errorf("%w: %s; end the pods that use it, it is then checked and mounted again", ErrReadOnlyRemount, v.fault)
		}
		return StateServing, nil
	case errors.Is(v.waiting, ErrQuarantined):
		return StateQuarantined, v.waiting
	case v.waiting != nil:
		return StateWaiting, v.waiting
	case v.lost != nil:
		return StateDead, v.lost
	case busy:
		return StateChanging, nil
	}
	return StateLeft, v.usable()
}
