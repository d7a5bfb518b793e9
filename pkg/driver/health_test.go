package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

var errMade = errors.New("made by the test")

func looked(id string, err error, nodes ...string) pool.Look {
	l := pool.Look{Volume: pool.Volume{ID: id}, Err: err}
	for _, n := range nodes {
		l.Volume.Attachments = append(l.Volume.Attachments, pool.Attachment{Node: n})
	}
	return l
}

// told is what an answer says, in words.
func told(h *csi.VolumeHealth) (all []string) {
	for _, e := range h.GetHealthStatuses() {
		all = append(all, e.GetStatus().String()+"/"+e.GetReason())
	}
	return all
}

func TestControllerGetVolumeHealth(t *testing.T) {
	f := newFake()
	h := &f.health
	h.looks = []pool.Look{
		looked("p-well", nil), looked("p-used", nil, "well"), looked("p-sick", nil, "sick"), looked("p-far", nil, "gone"),
		looked("p-strange", nil, "unknown"), looked("p-both", pool.ErrDamaged, "sick", "gone"), looked("p-closed", nil, "sick"),
		looked("q-away", nil, "sick"),
	}
	h.trees = map[string]pool.Figures{"p": {}, "q": {Err: errMade}}
	h.nodes = map[string]fakeNode{
		"well": {rep: map[string][]control.Entry{"p-used": nil}},
		"sick": {rep: map[string][]control.Entry{
			"p-sick": {control.FilesystemReadOnly.Because(nil), control.HeaderCorrupt.Because(errors.New("password=hunter2")), control.FilesystemReadOnly.Because(errMade)},
			"p-both": {control.RecordDamaged.Because(errMade)},
		}},
		"gone": {err: fmt.Errorf("%w: it is off", control.ErrUnreachable)},
	}
	c := csi.NewControllerClient(serve(t, f))
	for id, want := range map[string][]string{
		"p-well":    nil,
		"p-used":    nil,
		"p-sick":    {"DATA_LOSS/HeaderCorrupt", "DEGRADED/FilesystemReadOnly"},
		"p-far":     {"INACCESSIBLE/NodeUnreachable"},
		"p-strange": {"INACCESSIBLE/NodeUnreachable"},
		"p-both":    {"INACCESSIBLE/RecordDamaged", "INACCESSIBLE/NodeUnreachable"},
		"p-closed":  nil,
		"q-away":    {"INACCESSIBLE/PoolUnreachable"},
	} {
		r, err := c.ControllerGetVolumeHealth(t.Context(), &csi.ControllerGetVolumeHealthRequest{VolumeId: id})
		if err != nil || r.GetVolumeHealth().GetVolumeId() != id {
			t.Fatalf("%s: %v, %v", id, r, err)
		}
		if d := cmp.Diff(want, told(r.GetVolumeHealth())); d != "" {
			t.Errorf("%s (-want +got)\n%s", id, d)
		}
		if strings.Contains(r.String(), "hunter2") {
			t.Errorf("%s: a password is told: %v", id, r)
		}
	}
	if slices.Contains(h.asked, "sick q-away") {
		t.Error("a pool that is known to be away was looked at")
	}
	_, err := c.ControllerGetVolumeHealth(t.Context(), &csi.ControllerGetVolumeHealthRequest{VolumeId: "p-none"})
	wantCode(t, err, codes.NotFound)
	_, err = c.ControllerGetVolumeHealth(t.Context(), &csi.ControllerGetVolumeHealthRequest{VolumeId: "foreign"})
	wantCode(t, err, codes.NotFound)
	_, err = c.ControllerGetVolumeHealth(t.Context(), &csi.ControllerGetVolumeHealthRequest{})
	wantCode(t, err, codes.InvalidArgument)
}

func TestControllerListVolumeHealth(t *testing.T) {
	f := newFake()
	h := &f.health
	var want []string
	for i := range 500 {
		id := fmt.Sprintf("p-%03d", i)
		switch {
		case i%7 == 0:
			h.looks = append(h.looks, looked(id, pool.ErrDamaged))
			want = append(want, id)
		case i%11 == 0:
			h.looks = append(h.looks, looked(id, nil, "gone"))
			want = append(want, id)
		case i%3 == 0:
			h.looks = append(h.looks, looked(id, nil, "well"))
		default:
			h.looks = append(h.looks, looked(id, nil))
		}
	}
	h.nodes = map[string]fakeNode{"well": {}, "gone": {err: control.ErrUnreachable}}
	c := csi.NewControllerClient(serve(t, f))
	for _, n := range []int32{0, 1, 3, 16, 100, 5000} {
		h.asked = nil
		var got []string
		token, pages := "", 0
		for {
			r, err := c.ControllerListVolumeHealth(t.Context(), &csi.ControllerListVolumeHealthRequest{MaxEntries: n, StartingToken: token})
			if err != nil {
				t.Fatal(err)
			}
			if n > 0 && len(r.GetEntries()) > int(n) {
				t.Fatalf("%d entries, at most %d asked for", len(r.GetEntries()), n)
			}
			for _, e := range r.GetEntries() {
				got = append(got, e.GetVolumeId())
				if len(e.GetHealthStatuses()) == 0 {
					t.Fatalf("%s is well", e.GetVolumeId())
				}
			}
			pages++
			if token = r.GetNextToken(); token == "" {
				break
			}
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Fatalf("pages of %d (-want +got)\n%s", n, d)
		}
		gone := 0
		for _, a := range h.asked {
			if strings.HasPrefix(a, "gone ") {
				gone++
			}
		}
		if n != 1 && n != 3 && gone > pages*healthAsks {
			t.Errorf("pages of %d: a node that does not answer was asked %d times in %d pages", n, gone, pages)
		}
	}
	_, err := c.ControllerListVolumeHealth(t.Context(), &csi.ControllerListVolumeHealthRequest{StartingToken: "invalid-token"})
	wantCode(t, err, codes.Aborted)
	_, err = c.ControllerListVolumeHealth(t.Context(), &csi.ControllerListVolumeHealthRequest{MaxEntries: -1})
	wantCode(t, err, codes.InvalidArgument)
	// Who is not listed counts as well, so a list without one pool is no list.
	h.trees = map[string]pool.Figures{"q": {Err: errMade}}
	_, err = c.ControllerListVolumeHealth(t.Context(), &csi.ControllerListVolumeHealthRequest{})
	wantCode(t, err, codes.Unavailable)
}

// A node and a share that hang cost their own patience, and are told of.
func TestHealthOfWhatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		back := make(chan struct{})
		f := &fakeHealth{hold: back, looks: []pool.Look{looked("p-a", nil), looked("q-a", nil)}}
		f.nodes = map[string]fakeNode{"n": {hold: back}}
		h := newHealthView(Health{Pools: f, Figures: f.figures, Here: f, Nodes: f})
		for range 3 * maxLooks { // more than there are places
			l, err := h.look(t.Context(), "p-a")
			if err != nil || !errors.Is(l.Err, pool.ErrAway) {
				t.Fatalf("%+v, %v", l, err)
			}
		}
		all, err := h.here(t.Context(), "p-a")
		if err != nil || len(all) != 1 || all[0].Reason != "PoolUnreachable" {
			t.Fatalf("%+v, %v", all, err)
		}
		if _, err := h.ask(t.Context(), "n", "p-a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if n := len(h.places("p")); n != maxLooks {
			t.Errorf("%d looks wait", n)
		}
		// A caller that gives up first is told so.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := h.look(ctx, "q-a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		close(back)
		synctest.Wait()
		if l, err := h.look(t.Context(), "p-a"); err != nil || l.Err != nil {
			t.Fatalf("%+v, %v", l, err)
		}
	})
}

func TestNodeGetVolumeHealth(t *testing.T) {
	f := newFake()
	h := &f.health
	h.here = map[string][]control.Entry{"p-well": {}, "p-sick": {control.ImagePoisoned.Because(errMade)}, "q-well": {}, "foreign": {}}
	h.looks = []pool.Look{looked("p-left", nil), looked("p-broken", pool.ErrDamaged)}
	h.trees = map[string]pool.Figures{"p": {}, "q": {Err: errMade}}
	n := csi.NewNodeClient(serve(t, f))
	for id, want := range map[string][]string{
		"p-well":   nil,
		"p-sick":   {"INACCESSIBLE/ImagePoisoned"},
		"p-left":   nil,
		"p-broken": {"INACCESSIBLE/RecordDamaged"},
		"q-well":   {"INACCESSIBLE/PoolUnreachable"},
		"q-other":  {"INACCESSIBLE/PoolUnreachable"}, // nobody can say that there is none
		"foreign":  nil,
	} {
		r, err := n.NodeGetVolumeHealth(t.Context(), &csi.NodeGetVolumeHealthRequest{VolumeId: id, StagingTargetPath: "/s", VolumePublishPath: "/p"})
		if err != nil || r.GetVolumeHealth().GetVolumeId() != id {
			t.Fatalf("%s: %v, %v", id, r, err)
		}
		if d := cmp.Diff(want, told(r.GetVolumeHealth())); d != "" {
			t.Errorf("%s (-want +got)\n%s", id, d)
		}
	}
	for _, r := range []struct {
		r    *csi.NodeGetVolumeHealthRequest
		want codes.Code
	}{
		{&csi.NodeGetVolumeHealthRequest{}, codes.InvalidArgument},
		{&csi.NodeGetVolumeHealthRequest{VolumeId: "p-well", VolumePublishPath: "some/path"}, codes.InvalidArgument},
		{&csi.NodeGetVolumeHealthRequest{VolumeId: "p-none"}, codes.NotFound},
		{&csi.NodeGetVolumeHealthRequest{VolumeId: "none"}, codes.NotFound},
	} {
		_, err := n.NodeGetVolumeHealth(t.Context(), r.r)
		wantCode(t, err, r.want)
	}
}

func TestNodeGetStorageHealth(t *testing.T) {
	f := newFake()
	seen := time.Unix(1, 0)
	f.health.trees = map[string]pool.Figures{
		"a": {At: seen, Total: 1000, Free: 500}, "b": {}, "c": {Err: errMade}, "d": {Err: errMade, At: seen, Total: 1000},
		"e": {At: seen, Total: 1000, Free: 95}, "f": {At: seen, Total: 1000, Free: 250, Reserve: 200}, "g": {At: seen, Total: 1000, Free: 200, Reserve: 200},
	}
	n := csi.NewNodeClient(serve(t, f))
	r, err := n.NodeGetStorageHealth(t.Context(), &csi.NodeGetStorageHealthRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, b := range r.GetBackendHealth() {
		got = append(got, fmt.Sprintf("%s/%s x%d", b.GetStatus(), b.GetReason(), 1+strings.Count(b.GetMessage(), "\n")))
	}
	if d := cmp.Diff([]string{"STORAGE_UNREACHABLE/PoolUnreachable x2", "STORAGE_DEGRADED/PoolNearFull x2", "STORAGE_DEGRADED/PoolFull x1"}, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

// Without what the calls stand on nothing is served.
func TestHealthIsNeeded(t *testing.T) {
	f := newFake()
	for _, h := range []Health{{}, {Pools: &f.health}, {Pools: &f.health, Figures: f.health.figures}} {
		if _, err := New(t.Context(), Config{Node: &NodeService{Mounts: f, Usage: f, ID: "n"}, Health: h}); err == nil {
			t.Errorf("%+v is enough", h)
		}
	}
}
