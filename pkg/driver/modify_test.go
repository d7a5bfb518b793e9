package driver

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/node"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// follower is a holder that can do one thing.
type follower struct {
	control.Holder
	follow func(context.Context, string) error
}

func (f follower) Follow(ctx context.Context, id string) error { return f.follow(ctx, id) }

func TestModifyVolume(t *testing.T) {
	f := newFake()
	f.volumes["v"] = pool.Volume{ID: "v"}
	c := csi.NewControllerClient(serve(t, f, func(c *Config) { c.Controller.Holders = follower{follow: f.Follow} }))
	modify := func(id string, params map[string]string) error {
		_, err := c.ControllerModifyVolume(t.Context(), &csi.ControllerModifyVolumeRequest{VolumeId: id, MutableParameters: params})
		return err
	}
	for _, bad := range []map[string]string{
		{"iops": "100", "IOPS": "1"}, {"iops": "-1"}, {"iops": "+1"}, {"iops": "1.5"}, {"iops": ""}, {"iops": "1k"}, {"iops": "99999999999999999999"},
		{"bandwidth": "fast"}, {"bandwidth": "9000Ti"}, {"bandwidth": ""}, {"burst": "3601"}, {"burst": "1s"},
		{"onFull": ""}, {"onFull": "Pause"}, {"iops": "5", "onFull": "no"},
	} {
		wantCode(t, modify("v", bad), codes.InvalidArgument)
	}
	wantCode(t, modify("", nil), codes.InvalidArgument)
	if len(f.calls) > 0 {
		t.Fatalf("a bad change came to %v", f.calls)
	}
	wantCode(t, modify("w", map[string]string{"iops": "1"}), codes.NotFound)
	if err := modify("v", map[string]string{"iops": "500", "bandwidth": "50Mi", "onFull": "error"}); err != nil {
		t.Fatal(err)
	}
	one, iops, bandwidth, o := int64(1), int64(500), int64(50<<20), pool.OnFullError
	want := []any{modified{"w", pool.Change{IOPS: &one}}, modified{"v", pool.Change{IOPS: &iops, Bandwidth: &bandwidth, OnFull: &o}}, "follow v"}
	if d := cmp.Diff(want, f.calls); d != "" {
		t.Fatalf("(-want +got)\n%s", d)
	}
}

// A change that the node could not be told of is tried again, whole.
func TestModifyVolumeNodeDoesNotFollow(t *testing.T) {
	f := newFake()
	f.volumes["v"] = pool.Volume{ID: "v"}
	c := csi.NewControllerClient(serve(t, f, func(c *Config) {
		c.Controller.Holders = follower{follow: func(context.Context, string) error { return node.ErrUnserved }}
	}))
	_, err := c.ControllerModifyVolume(t.Context(), &csi.ControllerModifyVolumeRequest{VolumeId: "v", MutableParameters: map[string]string{"burst": "3"}})
	wantCode(t, err, codes.Unavailable)
}

func TestCreateWithLimits(t *testing.T) {
	f := newFake()
	c := csi.NewControllerClient(serve(t, f))
	_, err := c.CreateVolume(t.Context(), createReq(func(r *csi.CreateVolumeRequest) {
		r.MutableParameters = map[string]string{"iops": "7", "burst": "2", "onFull": "error"}
		r.Parameters = map[string]string{"onFull": "pause", "pauseLimit": "90m"}
	}))
	if err != nil {
		t.Fatal(err)
	}
	got := f.last(t).(pool.Spec)
	if got.Limits != (pool.Limits{IOPS: 7, Burst: 2}) || got.OnFull != pool.OnFullError ||
		got.Params.OnFull != pool.OnFullPause || got.Params.PauseLimit != 5400 {
		t.Fatalf("%+v", got)
	}
}

func TestMutableParametersAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/reference/volumeattributesclass.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range MutableParameters() {
		if row := "| `" + p.Key + "` | " + p.Values + " |"; !strings.Contains(string(page), row) {
			t.Errorf("docs/reference/volumeattributesclass.md lacks the row %s", row)
		}
	}
}
