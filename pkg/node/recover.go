package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

const (
	// recoverers is how many entries are torn down at once: one that is stuck
	// must not hold up all others until its deadline.
	recoverers = 8
	// resumePatience is how long Recover waits for volumes to be resumed. Those
	// that take longer, because their share does not answer, go on by themselves.
	resumePatience = 5 * time.Second
)

// Recover settles every entry of an earlier process, before any call is
// served. A volume whose device has outlived that process is resumed, all of
// them at once, and nothing is unmounted. One that cannot be resumed now waits,
// and is tried again. Everything else is torn down; what cannot be stays a
// leftover, and every later call for that volume tries again.
func (m *Manager) Recover(ctx context.Context) ([]Recovered, error) {
	entries, results, err := m.journal.load()
	if err != nil {
		return nil, err
	}
	var down []*volume
	var resumes []*resumption
	for _, e := range entries {
		if e.Boot != m.boot {
			// Mounts and devices do not outlive a boot: the number may be
			// another device's by now.
			e.Device = nil
		}
		v := &volume{entry: e}
		if m.resumable(e) {
			v.waiting = errResuming
			resumes = append(resumes, &resumption{v: v, done: make(chan struct{})})
		} else {
			down = append(down, v)
		}
		m.change(func() {
			m.volumes[e.Volume] = v
			if v.waiting != nil {
				m.busy[e.Volume] = true
			}
		})
	}
	lost := m.resumeAll(ctx, resumes, &results)
	for _, v := range down {
		// The helpers of the dead process that wait for its device end now.
		if err := m.letGo(ctx, v.entry.Volume); err != nil {
			klog.FromContext(ctx).Error(err, "Let go of a device that nobody serves", "volume", v.entry.Volume)
		}
	}
	if err := m.journal.awaitOrphans(ctx); err != nil {
		klog.FromContext(ctx).Error(err, "Helpers of an earlier process are stuck; what they hold stays in use")
	}
	m.thawLeft(ctx)
	results = append(results, m.settleAll(ctx, append(down, lost...))...)
	for _, r := range results {
		klog.FromContext(ctx).Info("Journal entry of an earlier process", "volume", r.VolumeID, "file", r.File,
			"outcome", string(r.Outcome), "took", r.Took, "reason", errText(r.Err))
	}
	m.change(func() { m.ready = true })
	return results, nil
}

// errResuming: nothing is known yet.
var errResuming = errors.New("it is being resumed")

// resumption is the resuming of one volume.
type resumption struct {
	v    *volume
	took time.Duration
	err  error
	done chan struct{}
}

// resumeAll resumes volumes and returns those that are lost.
func (m *Manager) resumeAll(ctx context.Context, all []*resumption, results *[]Recovered) (lost []*volume) {
	start := time.Now()
	for _, r := range all {
		go func() {
			defer close(r.done)
			r.err = m.resume(ctx, r.v)
			r.took = time.Since(start)
		}()
	}
	patience := time.NewTimer(resumePatience)
	defer patience.Stop()
	late := false
	for _, r := range all {
		if !late {
			select {
			case <-r.done:
			case <-patience.C:
				late = true
			}
		}
		select {
		case <-r.done:
			res := m.resumed(ctx, r)
			if r.v.lost != nil {
				lost = append(lost, r.v)
			} else {
				*results = append(*results, res)
			}
		default:
			e := r.v.entry
			*results = append(*results, Recovered{VolumeID: e.Volume, File: entryName(e.Volume), Outcome: OutcomeWaiting, Err: fmt.Errorf("%w: its share has not answered for %v", ErrPending, resumePatience)})
			go func() {
				<-r.done
				m.resumed(ctx, r)
			}()
		}
	}
	return lost
}

// resumed decides what follows from the outcome of a resumption, and lets
// calls come in for the volume.
func (m *Manager) resumed(ctx context.Context, r *resumption) Recovered {
	defer m.change(func() { delete(m.busy, r.v.entry.Volume) })
	res := Recovered{VolumeID: r.v.entry.Volume, File: entryName(r.v.entry.Volume), Outcome: OutcomeResumed, Took: r.took}
	switch {
	case r.err == nil:
		return res
	case lost(r.err):
		res.Err = m.cutOff(ctx, r.v, r.err)
	default:
		res.Err = m.wait(r.v, r.err)
	}
	if r.v.waiting != nil {
		res.Outcome = OutcomeWaiting
		go m.retry(ctx, r.v.entry.Volume, r.v)
	}
	return res
}

// settleAll tears volumes down that nobody serves any more.
func (m *Manager) settleAll(ctx context.Context, all []*volume) []Recovered {
	outcomes := make([]Recovered, len(all))
	slots := make(chan struct{}, recoverers)
	var wg sync.WaitGroup
	for i, v := range all {
		slots <- struct{}{}
		wg.Go(func() {
			outcomes[i] = m.settle(ctx, v)
			<-slots
		})
	}
	wg.Wait()
	return outcomes
}

// settle tears down one entry.
func (m *Manager) settle(ctx context.Context, v *volume) Recovered {
	e := v.entry
	r := Recovered{VolumeID: e.Volume, File: entryName(e.Volume), Outcome: OutcomeTornDown, Err: v.lost}
	if e.Device == nil {
		r.Outcome = OutcomeDropped
	}
	if err := m.tearDown(ctx, v); err != nil {
		r.Outcome, r.Err = OutcomeKept, errors.Join(v.lost, fmt.Errorf("volume %s: %w", e.Volume, err))
		if errors.Is(err, ErrBusy) && e.Device != nil {
			r.Err = fmt.Errorf("%w (end the pods that use it; `fuser -vm %s` names them)", r.Err, e.Device.Path)
		}
	}
	return r
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
