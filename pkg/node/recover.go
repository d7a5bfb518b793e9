package node

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"k8s.io/klog/v2"
)

// recoverers is how many entries are settled at once: one that is stuck must
// not hold up all others until its deadline.
const recoverers = 8

// Recover settles every entry of an earlier process, before any call is
// served. A process that dies takes its devices with it, so each entry is torn
// down; what cannot be stays a leftover, and every later call for that volume
// tries again. It reads no share.
func (m *Manager) Recover(ctx context.Context) ([]Recovered, error) {
	if err := m.journal.awaitOrphans(ctx); err != nil {
		klog.FromContext(ctx).Error(err, "Helpers of an earlier process are stuck; what they hold stays in use")
	}
	entries, results, err := m.journal.load()
	if err != nil {
		return nil, err
	}
	for i, e := range entries {
		if e.Boot != m.boot {
			// Mounts and devices do not outlive a boot: the number may be
			// another device's by now.
			entries[i].Device = nil
		}
		m.volumes[e.Volume] = &volume{entry: entries[i]}
	}
	outcomes := make([]Recovered, len(entries))
	slots := make(chan struct{}, recoverers)
	var wg sync.WaitGroup
	for i, e := range entries {
		slots <- struct{}{}
		wg.Go(func() {
			outcomes[i] = m.settle(ctx, m.lookup(e.Volume))
			<-slots
		})
	}
	wg.Wait()
	results = append(results, outcomes...)
	for _, r := range results {
		klog.FromContext(ctx).Info("Journal entry of an earlier process", "volume", r.VolumeID, "file", r.File, "outcome", string(r.Outcome), "reason", errText(r.Err))
	}
	m.change(func() { m.ready = true })
	return results, nil
}

// settle decides what becomes of one entry. Here a volume whose server lives
// on elsewhere would be resumed.
func (m *Manager) settle(ctx context.Context, v *volume) Recovered {
	e := v.entry
	r := Recovered{VolumeID: e.Volume, File: entryName(e.Volume), Outcome: OutcomeTornDown}
	if e.Device == nil {
		r.Outcome = OutcomeDropped
	}
	if err := m.tearDown(ctx, v); err != nil {
		r.Outcome, r.Err = OutcomeKept, fmt.Errorf("volume %s: %w", e.Volume, err)
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
