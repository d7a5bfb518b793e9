package node

import (
	"context"
	"errors"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// wantState fails unless the one volume there is is in that state, for that reason.
func (r *rig) wantState(want State, why error) {
	r.t.Helper()
	all := r.m.Volumes()
	if len(all) != 1 || all[0].VolumeID != r.id || all[0].State != want || !errors.Is(all[0].Err, why) {
		r.t.Fatalf("volumes %+v, want %s in state %s, %v", all, r.id, want, why)
	}
}

// What a served volume did is counted, from its first request on; after a death
// the count begins anew.
func TestCountsOfServedVolume(t *testing.T) {
	r := newKeptRig(t, pool.Spec{Name: "pvc-1", Size: realSize("ext4")})
	r.start()
	if all := r.m.Volumes(); len(all) != 0 {
		t.Fatalf("before anything is staged: %+v", all)
	}
	r.mustCall("ext4", "stage", "publish", "write")
	r.wantState(StateServing, nil)
	n := r.m.Volumes()[0].Count.Load()
	for _, k := range []blockdev.Kind{blockdev.Read, blockdev.Write, blockdev.Flush} {
		if n.Done[k] == 0 || n.Failed[k] != 0 {
			t.Errorf("%v: %d done, %d failed", k, n.Done[k], n.Failed[k])
		}
	}
	if n.Bytes[blockdev.Write] == 0 || n.Flushed == 0 {
		t.Errorf("%+v", n)
	}
	r.leave()
	replays := 0
	r.wantResumed()
	r.m.cfg.Replayed = func(vhdx.ReplayInfo) { replays++ }
	r.wantState(StateServing, nil)
	if again := r.m.Volumes()[0].Count.Load(); again.Bytes[blockdev.Write] >= n.Bytes[blockdev.Write] {
		t.Errorf("resumed it has written %d bytes already, before %d", again.Bytes[blockdev.Write], n.Bytes[blockdev.Write])
	}
	r.mustCall("ext4", "unpublish", "unstage")
	if all := r.m.Volumes(); len(all) != 0 || replays != 0 {
		t.Fatalf("%+v, %d replays", all, replays)
	}
	r.wantClean()
}

// A log that a death left is replayed once, which is told with its time.
func TestReplayIsTold(t *testing.T) {
	r := newKeptRig(t, pool.Spec{Name: "pvc-1", Size: realSize("ext4")})
	r.kill(victim{FS: "ext4", Calls: []string{"stage", "publish", "write"}})
	m, err := r.open()
	if err != nil {
		t.Fatal(err)
	}
	r.m = m
	var told []vhdx.ReplayInfo
	m.cfg.Replayed = func(i vhdx.ReplayInfo) { told = append(told, i) }
	if got, err := m.Recover(t.Context()); err != nil || len(got) != 1 || got[0].Outcome != OutcomeResumed {
		t.Fatalf("recovered %+v, %v", got, err)
	}
	if len(told) != 1 || told[0].Entries == 0 || told[0].Took <= 0 {
		t.Fatalf("told %+v", told)
	}
	r.mustCall("ext4", "unpublish", "unstage")
	r.wantClean()
}

func TestStates(t *testing.T) {
	cause := errors.New("made by the test")
	running, gone := &fakeDevice{done: make(chan struct{})}, &fakeDevice{done: make(chan struct{}), err: cause}
	close(gone.done)
	for _, test := range []*struct {
		name string
		v    volume
		busy bool
		want State
		why  error
	}{
		{"served", volume{dev: running, staged: true, image: poisonable{}}, false, StateServing, nil},
		{"served, a call at work", volume{dev: running, staged: true, image: poisonable{}}, true, StateServing, nil},
		{"poisoned", volume{dev: running, staged: true, image: poisonable{err: cause}}, false, StatePoisoned, cause},
		{"failed", volume{dev: gone, staged: true, image: poisonable{}}, false, StateDead, cause},
		{"on its way up", volume{dev: running}, true, StateChanging, nil},
		{"waits", volume{waiting: cause}, false, StateWaiting, cause},
		{"waits, tried again", volume{waiting: cause}, true, StateWaiting, cause},
		{"in quarantine", volume{waiting: unserved(ErrQuarantined)}, true, StateQuarantined, ErrQuarantined},
		{"cut off", volume{lost: cause}, false, StateDead, cause},
		{"left over", volume{}, false, StateLeft, ErrNotStaged},
	} {
		got, err := test.v.state(test.busy)
		if got != test.want || !errors.Is(err, test.why) {
			t.Errorf("%s: %s, %v; want %s, %v", test.name, got, err, test.want, test.why)
		}
	}
}

type fakeDevice struct {
	done chan struct{}
	err  error
}

func (*fakeDevice) Path() string                 { return "/dev/fake" }
func (*fakeDevice) Resize(context.Context) error { return nil }
func (*fakeDevice) Detach(context.Context) error { return nil }
func (d *fakeDevice) Done() <-chan struct{}      { return d.done }
func (d *fakeDevice) Err() error                 { return d.err }

type poisonable struct {
	image
	err error
}

func (p poisonable) Poisoned() error { return p.err }
