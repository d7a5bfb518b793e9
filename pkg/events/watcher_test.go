package events

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/supervisor"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/node"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

func reasons(all []Event) (got []string) {
	for _, e := range all {
		text := string(e.Reason)
		if e.Volume != "" {
			text += " " + e.Volume
		}
		got = append(got, text)
	}
	return got
}

var errMade = errors.New("made by the test")

// I-EVT-4: what begins is told once, what ends too, and what passes not at all.
func TestWatcherOfVolumes(t *testing.T) {
	w := NewWatcher()
	now := time.Unix(1000, 0)
	broken := &vhdx.CorruptError{File: "f", Structure: "log", Reason: "made by the test"}
	for i, step := range []struct {
		after time.Duration
		state node.State // "": the volume is not there
		err   error
		want  []string
	}{
		{0, node.StateWaiting, errMade, nil}, // every volume waits for a moment after a restart
		{2 * time.Second, node.StateServing, nil, nil},
		{2 * time.Second, node.StateWaiting, errMade, nil},
		{9 * time.Second, node.StateWaiting, errMade, nil},
		{2 * time.Second, node.StateWaiting, errMade, []string{"VolumeWaiting v"}},
		{time.Hour, node.StateWaiting, errMade, nil},
		{time.Second, node.StateQuarantined, errMade, []string{"VolumeQuarantined v"}},
		{time.Second, node.StateQuarantined, errMade, nil},
		{time.Second, node.StateServing, nil, []string{"VolumeServedAgain v"}},
		{time.Second, node.StateServing, nil, nil},
		{time.Second, node.StatePaused, errMade, []string{"VolumePaused v"}},
		{time.Hour, node.StatePaused, errMade, nil},
		{time.Second, node.StateServing, nil, []string{"VolumeServedAgain v"}},
		{time.Second, node.StateReadOnly, errMade, []string{"FilesystemReadOnly v"}},
		{time.Hour, node.StateReadOnly, errMade, nil},
		{time.Second, node.StateServing, nil, []string{"VolumeServedAgain v"}},
		{time.Second, node.StateFailed, errMade, nil}, // Kubernetes tells of it
		{time.Second, node.StateServing, nil, nil},
		{time.Second, node.StatePoisoned, errMade, []string{"VolumeTakesNoWrites v"}},
		{time.Second, node.StatePoisoned, errMade, nil},
		{time.Second, node.StateChanging, nil, nil}, // it is staged anew
		{time.Second, node.StateServing, nil, []string{"VolumeServedAgain v"}},
		{time.Second, node.StateDead, errMade, []string{"VolumeDeviceLost v"}},
		{time.Second, "", nil, nil}, // torn down
		{time.Second, node.StateChanging, nil, nil},
		{time.Second, node.StateServing, nil, nil},
		{time.Second, node.StateWaiting, broken, nil},
		{time.Minute, node.StateWaiting, broken, []string{"ImageCorrupt v"}},
	} {
		now = now.Add(step.after)
		var all []node.Status
		if step.state != "" {
			all = []node.Status{{VolumeID: "v", State: step.state, Err: step.err}}
		}
		got := w.Volumes(now, all)
		if d := cmp.Diff(step.want, reasons(got)); d != "" {
			t.Errorf("step %d, %s (-want +got)\n%s", i, step.state, d)
		}
		for _, e := range got {
			if step.err != nil && !strings.Contains(e.Message, "made by the test") || e.Warning != (step.err != nil) {
				t.Errorf("step %d: %+v", i, e)
			}
		}
	}
	w.Volumes(now, nil)
	if len(w.volumes) != 0 {
		t.Errorf("remembers %v", w.volumes)
	}
}

func TestWatcherOfPools(t *testing.T) {
	w := NewWatcher()
	seen := time.Unix(1000, 0)
	at := func(free int64) pool.Figures {
		return pool.Figures{Pool: "p", At: seen, Total: 1000 << 20, Free: free << 20}
	}
	for i, step := range []struct {
		f    pool.Figures
		want []string
	}{
		{pool.Figures{Pool: "p"}, nil}, // nothing is known
		{at(500), nil},
		{at(99), []string{"PoolNearlyFull"}},
		{at(90), nil},
		{at(105), nil}, // on the border
		{at(125), []string{"PoolHasRoom"}},
		{at(105), nil},
		{at(10), []string{"PoolFull"}},
		{at(110), []string{"PoolNearlyFull"}},
		{pool.Figures{Pool: "p", Err: errMade}, []string{"PoolNotAnswering"}},
		{pool.Figures{Pool: "p", Err: fmt.Errorf("another way: %w", errMade)}, nil},
		{at(10), []string{"PoolAnswering", "PoolFull"}},
		{pool.Figures{Pool: "p", Err: errMade}, []string{"PoolNotAnswering"}},
		{at(500), []string{"PoolAnswering"}},
		{pool.Figures{Pool: "p", At: seen, Total: 1000, Free: 500, Reserve: 600}, []string{"PoolFull"}},
	} {
		if d := cmp.Diff(step.want, reasons(w.Pools([]pool.Figures{step.f}, true))); d != "" {
			t.Errorf("step %d (-want +got)\n%s", i, d)
		}
	}
	// How full it is, is the controller's to tell.
	w = NewWatcher()
	if got := w.Pools([]pool.Figures{at(1)}, false); got != nil {
		t.Errorf("a node says %v", got)
	}
	if got := reasons(w.Pools([]pool.Figures{{Pool: "p", Err: errMade}}, false)); !slices.Equal(got, []string{"PoolNotAnswering"}) {
		t.Errorf("a node says %v", got)
	}
}

func TestStarted(t *testing.T) {
	if got := Started(supervisor.History{}, 0, []node.Recovered{{VolumeID: "v", Outcome: node.OutcomeTornDown}}); got != nil {
		t.Errorf("a first start says %v", got)
	}
	past := supervisor.History{Ends: [supervisor.Kinds]uint64{supervisor.Hung: 2}, Last: supervisor.Hung, Cause: "no heartbeat for 10s"}
	got := Started(past, 1234*time.Millisecond, []node.Recovered{{VolumeID: "v", Outcome: node.OutcomeTornDown, Err: errMade}})
	if d := cmp.Diff([]string{"WorkerReplaced", "VolumeDeviceLost v"}, reasons(got)); d != "" {
		t.Fatal(d)
	}
	for _, part := range []string{"2. time", "hung", "no heartbeat for 10s", "1.234s"} {
		if !strings.Contains(got[0].Message, part) {
			t.Errorf("no %q in %q", part, got[0].Message)
		}
	}
	if !got[0].Warning || Started(supervisor.History{Ends: [supervisor.Kinds]uint64{supervisor.Killed: 1}}, 0, nil)[0].Warning {
		t.Error("a hang is a warning, a kill from outside is none")
	}
}

func TestCall(t *testing.T) {
	broken := fmt.Errorf("stage: %w", &vhdx.CorruptError{File: "f", Structure: "log", Reason: "x"})
	if e, ok := Call("v", broken); !ok || e.Reason != ImageCorrupt || e.Volume != "v" {
		t.Errorf("%+v, %v", e, ok)
	}
	for _, err := range []error{nil, errMade, vhdx.ErrInUse} {
		if e, ok := Call("v", err); ok {
			t.Errorf("%v makes %+v", err, e)
		}
	}
}
