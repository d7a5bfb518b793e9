package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/helper"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
)

// Report says what is wrong with a volume that is here, or could not be staged
// here. It answers from memory, whatever hangs; see [Manager.Watch].
// control.ErrNotHeld.
func (m *Manager) Report(_ context.Context, volumeID string) (control.Report, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.status(volumeID)
	if !ok {
		return control.Report{}, fmt.Errorf("report on volume %s: %w", volumeID, control.ErrNotHeld)
	}
	return control.Report{Entries: s.Wrong}, nil
}

// status is called under Manager.mu.
func (m *Manager) status(id string) (Status, bool) {
	v, f := m.volumes[id], m.failed[id]
	s := Status{VolumeID: id}
	switch {
	case v != nil:
		if v.dev != nil {
			s.Count = v.count
		}
		s.State, s.Err = v.state(m.busy[id])
		s.Paused = v.paused()
	case f.err != nil:
		s.State, s.Err = StateFailed, f.err
	default:
		return s, false
	}
	s.Wrong = wrong(s.State, s.Err)
	// What is tried again, or could not be cleaned up, is so for a reason.
	if f.err != nil && (s.State == StateChanging || s.State == StateLeft) {
		s.Wrong = append(s.Wrong, wrong(StateFailed, f.err)...)
	}
	return s, true
}

const (
	lookEvery = 30 * time.Second
	lookers   = 4 // looks at once: a device that hangs holds up its own only
)

// Watch looks at the staged filesystems now and then, until ctx ends: no kernel
// tells when one has stopped for an error.
func (m *Manager) Watch(ctx context.Context) {
	each := func(do func(context.Context)) {
		for {
			select {
			case <-ctx.Done():
				return
			case <-m.stopped:
				return
			case <-time.After(lookEvery):
			}
			do(ctx)
		}
	}
	go each(m.lookAtFilesystems)
	go each(m.forgetHistory) // a share that hangs holds up this one only
}

// lookAtFilesystems notes which staged filesystems take no more writes.
func (m *Manager) lookAtFilesystems(ctx context.Context) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, lookers)
	for _, v := range m.toLookAt() {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			m.lookAt(ctx, v)
		})
	}
	wg.Wait()
}

// looked is a volume with its entry as it was when the look began.
type looked struct {
	v     *volume
	entry entry
}

func (m *Manager) toLookAt() (all []looked) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, v := range m.volumes {
		if v.up() && !v.looking && len(v.entry.Staging) > 0 {
			v.looking = true
			all = append(all, looked{v, v.entry.clone()})
		}
	}
	return all
}

// lookAt lets one helper at most look at a filesystem. As long as a stuck one is
// there no other is started.
func (m *Manager) lookAt(ctx context.Context, l looked) {
	text, err := m.fault(ctx, &volume{entry: l.entry}, l.entry.Staging[0])
	if err == nil {
		m.change(func() { l.v.fault = text })
	}
	done := func() { m.change(func() { l.v.looking = false }) }
	if stuck, ok := errors.AsType[*helper.StuckError](err); ok {
		go func() {
			<-stuck.Gone
			done()
		}()
		return
	}
	done()
}
