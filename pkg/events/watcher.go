package events

import (
	"errors"
	"fmt"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/supervisor"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/node"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// Watcher turns states into Events. One goroutine at a time uses it.
type Watcher struct {
	volumes map[string]*seen
	pools   map[string]Reason // what was said of it last
}

// seen is a volume as it was seen last.
type seen struct {
	state node.State
	since time.Time
	told  bool // that it is not well
	here  bool
}

// waitPatience is how long a volume may wait, or a pool be away, before it is
// worth an Event: after a restart every volume waits for a moment.
const waitPatience = 10 * time.Second

// NewWatcher knows nothing yet.
func NewWatcher() *Watcher {
	return &Watcher{volumes: map[string]*seen{}, pools: map[string]Reason{}}
}

// Volumes takes a look at a node's volumes and says what is new.
func (w *Watcher) Volumes(now time.Time, all []node.Status) (out []Event) {
	for _, s := range w.volumes {
		s.here = false
	}
	for _, v := range all {
		s := w.volumes[v.VolumeID]
		if s == nil {
			s = &seen{state: v.State, since: now}
			w.volumes[v.VolumeID] = s
		}
		s.here = true
		if s.state != v.State {
			s.state, s.since, s.told = v.State, now, s.told && !bad(v.State)
		}
		switch {
		case bad(v.State) && !s.told && (v.State != node.StateWaiting || now.Sub(s.since) >= waitPatience):
			s.told = true
			out = append(out, notWell(v))
		case v.State == node.StateServing && s.told:
			s.told = false
			out = append(out, Event{Reason: VolumeServed, Volume: v.VolumeID, Message: fmt.Sprintf("Volume %s is served again.", v.VolumeID)})
		}
	}
	for id, s := range w.volumes {
		if !s.here {
			delete(w.volumes, id)
		}
	}
	return out
}

func bad(s node.State) bool {
	switch s {
	case node.StateWaiting, node.StateQuarantined, node.StatePoisoned, node.StatePaused, node.StateReadOnly, node.StateDead:
		return true
	}
	return false
}

// notWell says what is wrong with a volume.
func notWell(v node.Status) Event {
	e := Event{Volume: v.VolumeID, Warning: true}
	switch {
	case v.State == node.StateQuarantined:
		e.Reason = VolumeQuarantined
		e.Message = fmt.Sprintf("Volume %s has killed its server three times and is not served; its requests wait. %v", v.VolumeID, v.Err)
	case v.State == node.StatePaused:
		e.Reason = VolumePaused
		e.Message = fmt.Sprintf("The share of volume %s is full. Its writes wait, none has failed, and go on within a second once there is room: %v", v.VolumeID, v.Err)
	case v.State == node.StatePoisoned:
		e.Reason = VolumeReadOnly
		e.Message = fmt.Sprintf("Volume %s takes no writes any more. End its pods; it can be staged again when the storage is well: %v", v.VolumeID, v.Err)
	case v.State == node.StateReadOnly:
		e.Reason = FilesystemReadOnly
		e.Message = fmt.Sprintf("The filesystem of volume %s takes no writes any more. End its pods; it is checked and mounted again when it is staged the next time: %v", v.VolumeID, v.Err)
	case v.State == node.StateDead:
		e.Reason = VolumeDead
		e.Message = fmt.Sprintf("The device of volume %s is lost and its requests fail. Restart the pods that use it: %v", v.VolumeID, v.Err)
	case errors.Is(v.Err, vhdx.ErrCorrupt):
		return corrupt(v.VolumeID, v.Err)
	default:
		e.Reason = VolumeWaiting
		e.Message = fmt.Sprintf("Volume %s waits for its server; its requests are held, none has failed: %v", v.VolumeID, v.Err)
	}
	return e
}

func corrupt(volume string, err error) Event {
	return Event{Reason: ImageCorrupt, Warning: true, Volume: volume,
		Message: fmt.Sprintf("The image of volume %s is damaged and is not used. Look at it with vhdxctl check, or restore it: %v", volume, err)}
}

// Call says what a failed call shows: nothing, mostly, for its caller has been
// told and makes an Event itself.
func Call(volume string, err error) (Event, bool) {
	if volume == "" || !errors.Is(err, vhdx.ErrCorrupt) {
		return Event{}, false
	}
	return corrupt(volume, err), true
}

// Started says what a worker found when it started. gap is how long nobody had
// served the node's devices.
func Started(past supervisor.History, gap time.Duration, all []node.Recovered) (out []Event) {
	if past.Restarts() > 0 {
		out = append(out, Event{
			Reason: WorkerReplaced, Warning: past.Last != supervisor.Killed,
			Message: fmt.Sprintf("The worker of the node plugin was replaced, for the %d. time since the plugin started: it %s (%s). This node's volumes paused for %v; no request failed.",
				past.Restarts(), how[past.Last], past.Cause, gap.Round(time.Millisecond)),
		})
	}
	for _, r := range all {
		if r.Outcome == node.OutcomeTornDown && r.Err != nil {
			out = append(out, notWell(node.Status{VolumeID: r.VolumeID, State: node.StateDead, Err: r.Err}))
		}
	}
	return out
}

var how = [supervisor.Kinds]string{supervisor.Killed: "was killed", supervisor.Failed: "failed", supervisor.Hung: "hung and was killed"}

// Lost says that the keeper has gone.
func Lost(err error) Event {
	return Event{Reason: KeeperGone, Warning: true,
		Message: fmt.Sprintf("The keeper has gone. Until there is one again, the end of the node plugin costs every volume in use on this node: do not restart it. %v", err)}
}

// Restored says what a new keeper was given: so many volumes, and err if that
// was not all.
func Restored(volumes int, err error) Event {
	if err != nil {
		return Event{Reason: KeeperIncomplete, Warning: true,
			Message: fmt.Sprintf("A new keeper holds only %d of this node's volumes; the end of the node plugin would cost the others: %v", volumes, err)}
	}
	return Event{Reason: KeeperBack, Message: fmt.Sprintf("A new keeper holds all of this node's volumes: %d.", volumes)}
}

// hasRoom is when a pool that was nearly full has room again: above the mark of
// [pool.TroubleNear], so that it does not tell at each write on the border.
const hasRoom = 0.12

// Pools takes a look at pools. space: how full they are is this process's to
// tell, which is the controller's.
func (w *Watcher) Pools(all []pool.Figures, space bool) (out []Event) {
	for _, f := range all {
		now, ok := poolReason(f, space, w.pools[f.Pool])
		if !ok || now == w.pools[f.Pool] {
			continue
		}
		before := w.pools[f.Pool]
		w.pools[f.Pool] = now
		if before == "" && now == PoolHasRoom {
			continue // as it should be
		}
		if before == PoolNotAnswering {
			out = append(out, Event{Reason: PoolAnswering, Message: fmt.Sprintf("Pool %s answers again.", f.Pool)})
			if now == PoolHasRoom {
				continue
			}
		}
		out = append(out, poolEvent(now, f))
	}
	return out
}

// poolReason is what is to be said of a pool; before is what was said last. ok
// is false when nothing is known.
func poolReason(f pool.Figures, space bool, before Reason) (now Reason, ok bool) {
	t, _ := f.Trouble()
	switch {
	case t == pool.TroubleAway:
		return PoolNotAnswering, true
	case f.At.IsZero():
		return "", false
	case !space:
		return PoolHasRoom, true
	case t == pool.TroubleFull:
		return PoolFull, true
	case t == pool.TroubleNear, f.Left() < hasRoom && (before == PoolNearlyFull || before == PoolFull):
		return PoolNearlyFull, true
	}
	return PoolHasRoom, true
}

func poolEvent(r Reason, f pool.Figures) Event {
	e := Event{Reason: r, Warning: true}
	space := fmt.Sprintf("%d of %d MiB are free", f.Free>>20, f.Total>>20)
	switch r {
	case PoolNotAnswering:
		e.Message = fmt.Sprintf("The share of pool %s does not answer; I/O of its volumes waits: %v", f.Pool, f.Err)
	case PoolFull:
		e.Message = fmt.Sprintf("Pool %s is full: %s, %d MiB are reserved. Writes to its volumes are about to wait, or fail (onFull): make room or grow the share.", f.Pool, space, f.Reserve>>20)
	case PoolNearlyFull:
		e.Message = fmt.Sprintf("Pool %s is nearly full: %s.", f.Pool, space)
	default:
		e.Warning = false
		e.Message = fmt.Sprintf("Pool %s has room again: %s.", f.Pool, space)
	}
	return e
}
