package driver

import (
	"errors"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

const writer = csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER

func pool1(id string) pool.Volume {
	return pool.Volume{ID: id, Pool: "default", Size: 1 << 30, Attachments: []pool.Attachment{{Node: "node-1"}, {Node: "node-2"}}}
}

func createReq(change ...func(*csi.CreateVolumeRequest)) *csi.CreateVolumeRequest {
	r := &csi.CreateVolumeRequest{Name: "v", VolumeCapabilities: []*csi.VolumeCapability{mount(writer, "xfs")},
		CapacityRange: &csi.CapacityRange{RequiredBytes: 1<<30 + 512, LimitBytes: 2 << 30}}
	for _, c := range change {
		c(r)
	}
	return r
}

func TestCreateVolume(t *testing.T) {
	f := newFake()
	c := csi.NewControllerClient(serve(t, f))
	r, err := c.CreateVolume(t.Context(), createReq(func(r *csi.CreateVolumeRequest) {
		r.Parameters = map[string]string{"pool": "fast", "blockSize": "2Mi"}
	}))
	if err != nil {
		t.Fatal(err)
	}
	want := pool.Spec{Name: "v", Size: 1<<30 + 512, Limit: 2 << 30, Pool: "fast", Params: pool.Params{BlockSize: 2 << 20, FSType: "xfs"}}
	if d := cmp.Diff(want, f.last(t)); d != "" {
		t.Fatalf("(-want +got)\n%s", d)
	}
	if d := cmp.Diff(&csi.Volume{VolumeId: "id-v", CapacityBytes: 1<<30 + 512, AccessibleTopology: []*csi.Topology{at("fast", sharedPool)}}, r.GetVolume(), protocmp.Transform()); d != "" {
		t.Fatalf("(-want +got)\n%s", d)
	}
}

// at is a place with this pool.
func at(pool, value string) *csi.Topology {
	return &csi.Topology{Segments: map[string]string{TopologyKey(pool): value}}
}

func TestCreateVolumeRefuses(t *testing.T) {
	f := newFake()
	c := csi.NewControllerClient(serve(t, f, localPool))
	type R = *csi.CreateVolumeRequest
	for _, tt := range []struct {
		name   string
		code   codes.Code
		change func(R)
	}{
		{"no name", codes.InvalidArgument, func(r R) { r.Name = "" }},
		{"long name", codes.InvalidArgument, func(r R) { r.Name = s128 + "n" }},
		{"no capability", codes.InvalidArgument, func(r R) { r.VolumeCapabilities = nil }},
		{"writers on many nodes", codes.InvalidArgument, func(r R) {
			r.VolumeCapabilities[0].AccessMode.Mode = csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
		}},
		{"readers on many nodes", codes.InvalidArgument, func(r R) {
			r.VolumeCapabilities[0].AccessMode.Mode = csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
		}},
		{"unknown parameter", codes.InvalidArgument, func(r R) { r.Parameters = map[string]string{"x": "y"} }},
		{"unknown pool", codes.InvalidArgument, func(r R) { r.Parameters = map[string]string{"pool": "nope"} }},
		{"two filesystems", codes.InvalidArgument, func(r R) { r.Parameters = map[string]string{"fsType": "ext4"} }},
		{"mutable parameters", codes.InvalidArgument, func(r R) { r.MutableParameters = map[string]string{"iops": "1", "bandwidth": "-1"} }},
		{"content source of no kind", codes.InvalidArgument, func(r R) { r.VolumeContentSource = &csi.VolumeContentSource{} }},
		{"content source without an id", codes.InvalidArgument, func(r R) {
			r.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
				Volume: &csi.VolumeContentSource_VolumeSource{}}}
		}},
		{"limit below", codes.OutOfRange, func(r R) { r.CapacityRange.LimitBytes = 1 << 20 }},
		{"too large", codes.OutOfRange, func(r R) { r.CapacityRange = &csi.CapacityRange{RequiredBytes: 65 << 40} }},
		{"xfs too small", codes.OutOfRange, func(r R) {
			r.CapacityRange = &csi.CapacityRange{RequiredBytes: 1 << 20, LimitBytes: 2 << 20}
		}},
		{"other node", codes.ResourceExhausted, func(r R) {
			r.AccessibilityRequirements = &csi.TopologyRequirement{Requisite: []*csi.Topology{at("default", "node-2"), at("default", "node-3")}}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := c.CreateVolume(t.Context(), createReq(tt.change))
			wantCode(t, err, tt.code)
			if r != nil {
				t.Fatalf("an answer beside the error: %v", r)
			}
		})
	}
	if len(f.calls) != 0 {
		t.Fatalf("something was done: %v", f.calls)
	}
}

func TestGetCapacity(t *testing.T) {
	c := csi.NewControllerClient(serve(t, newFake()))
	get := func(p map[string]string, caps ...*csi.VolumeCapability) *csi.GetCapacityResponse {
		r, err := c.GetCapacity(t.Context(), &csi.GetCapacityRequest{Parameters: p, VolumeCapabilities: caps})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := get(nil); r.GetAvailableCapacity() != 50<<30 || r.GetMaximumVolumeSize().GetValue() != 50<<30 || r.GetMinimumVolumeSize() != nil {
		t.Errorf("plain: %v", r)
	}
	if r := get(map[string]string{"subformat": "fixed"}); r.GetAvailableCapacity() != 20<<30 {
		t.Errorf("fixed: %v", r)
	}
	if r := get(nil, mount(writer, "xfs")); r.GetMinimumVolumeSize().GetValue() != 300<<20 {
		t.Errorf("xfs: %v", r)
	}
	if r := get(nil, block(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)); r.GetAvailableCapacity() != 0 {
		t.Errorf("unsupported mode: %v", r)
	}
	// What is wrong is for CreateVolume to say.
	for _, wrong := range []map[string]string{{"x": "y"}, {"pool": "nope"}} {
		if r := get(wrong); r.GetAvailableCapacity() != maxVolume {
			t.Errorf("%v: %v", wrong, r)
		}
	}
}

func TestListVolumes(t *testing.T) {
	f := newFake()
	c := csi.NewControllerClient(serve(t, f))
	f.volumes["a"] = pool1("a")
	r, err := c.ListVolumes(t.Context(), &csi.ListVolumesRequest{StartingToken: "tok"})
	if err != nil {
		t.Fatal(err)
	}
	want := &csi.ListVolumesResponse{NextToken: "next", Entries: []*csi.ListVolumesResponse_Entry{{
		Volume: &csi.Volume{VolumeId: "a", CapacityBytes: 1 << 30, AccessibleTopology: []*csi.Topology{at("default", sharedPool)}},
		Status: &csi.ListVolumesResponse_VolumeStatus{PublishedNodeIds: []string{"node-1", "node-2"}},
	}}}
	if d := cmp.Diff(want, r, protocmp.Transform()); d != "" {
		t.Fatalf("(-want +got)\n%s", d)
	}
	if d := cmp.Diff([2]any{"tok", maxEntries}, f.last(t)); d != "" {
		t.Fatalf("(-want +got)\n%s", d)
	}
	if _, err := c.ListVolumes(t.Context(), &csi.ListVolumesRequest{MaxEntries: 2}); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([2]any{"", 2}, f.last(t)); d != "" {
		t.Fatalf("(-want +got)\n%s", d)
	}
	_, err = c.ListVolumes(t.Context(), &csi.ListVolumesRequest{MaxEntries: -1})
	wantCode(t, err, codes.InvalidArgument)
	f.err = pool.ErrBadToken
	_, err = c.ListVolumes(t.Context(), &csi.ListVolumesRequest{StartingToken: "invalid-token"})
	wantCode(t, err, codes.Aborted)
}

func TestControllerPublish(t *testing.T) {
	f := newFake()
	c := csi.NewControllerClient(serve(t, f))
	req := func() *csi.ControllerPublishVolumeRequest {
		return &csi.ControllerPublishVolumeRequest{VolumeId: "a", NodeId: "node-1", VolumeCapability: block(writer)}
	}
	for _, tt := range []struct {
		name   string
		change func(*csi.ControllerPublishVolumeRequest)
		want   bool
	}{
		{"writer", func(*csi.ControllerPublishVolumeRequest) {}, false},
		{"readonly", func(r *csi.ControllerPublishVolumeRequest) { r.Readonly = true }, true},
		{"reader", func(r *csi.ControllerPublishVolumeRequest) {
			r.VolumeCapability = block(csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY)
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := req()
			tt.change(r)
			resp, err := c.ControllerPublishVolume(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			if got := resp.GetPublishContext()[readOnlyKey] == "true"; got != tt.want {
				t.Errorf("publish context %v", resp.GetPublishContext())
			}
			if d := cmp.Diff(attach{"a", "node-1", tt.want}, f.last(t)); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
		})
	}
	for name, change := range map[string]func(*csi.ControllerPublishVolumeRequest){
		"volume":     func(r *csi.ControllerPublishVolumeRequest) { r.VolumeId = "" },
		"node":       func(r *csi.ControllerPublishVolumeRequest) { r.NodeId = "" },
		"capability": func(r *csi.ControllerPublishVolumeRequest) { r.VolumeCapability = nil },
	} {
		t.Run("no "+name, func(t *testing.T) {
			r := req()
			change(r)
			_, err := c.ControllerPublishVolume(t.Context(), r)
			wantCode(t, err, codes.InvalidArgument)
		})
	}
	f.err = &pool.AttachedError{Volume: "a", Node: "other-node"}
	_, err := c.ControllerPublishVolume(t.Context(), req())
	wantCode(t, err, codes.FailedPrecondition)
	if !strings.Contains(err.Error(), "other-node") {
		t.Errorf("the other node is not named: %v", err)
	}
	f.err = pool.ErrInUse
	_, err = c.ControllerUnpublishVolume(t.Context(), &csi.ControllerUnpublishVolumeRequest{VolumeId: "a"})
	wantCode(t, err, codes.Aborted)
}

func TestControllerExpand(t *testing.T) {
	f := newFake()
	c := csi.NewControllerClient(serve(t, f))
	f.volumes["a"] = pool.Volume{ID: "a", Size: 1 << 30, Params: pool.Params{LogicalSectorSize: 4096}}
	for _, tt := range []struct {
		name        string
		id          string
		need, limit int64
		code        codes.Code
		want        int64
	}{
		{"grow", "a", 2 << 30, 0, codes.OK, 2 << 30},
		{"round", "a", 2<<30 + 512, 0, codes.OK, 2<<30 + 4096},
		{"has it", "a", 1 << 20, 0, codes.OK, 1 << 30},
		{"shrink", "a", 1 << 20, 2 << 20, codes.OutOfRange, 0},
		{"unknown", "fake-vol-id", 2 << 30, 0, codes.NotFound, 0},
		{"no id", "", 2 << 30, 0, codes.InvalidArgument, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := c.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{VolumeId: tt.id,
				CapacityRange: &csi.CapacityRange{RequiredBytes: tt.need, LimitBytes: tt.limit}})
			wantCode(t, err, tt.code)
			if err == nil && (r.GetCapacityBytes() != tt.want || !r.GetNodeExpansionRequired()) {
				t.Errorf("got %v", r)
			}
		})
	}
	_, err := c.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{VolumeId: "a"})
	wantCode(t, err, codes.InvalidArgument)
}

func TestValidateVolumeCapabilities(t *testing.T) {
	f := newFake()
	c := csi.NewControllerClient(serve(t, f))
	f.volumes["a"] = pool.Volume{ID: "a", Pool: "default", FSType: "xfs"}
	for _, tt := range []struct {
		name   string
		caps   []*csi.VolumeCapability
		params map[string]string
		ok     bool
	}{
		{"block", []*csi.VolumeCapability{block(writer)}, nil, true},
		{"its filesystem", []*csi.VolumeCapability{mount(writer, "xfs")}, nil, true},
		{"unnamed filesystem", []*csi.VolumeCapability{mount(writer, "")}, nil, true},
		{"other filesystem", []*csi.VolumeCapability{mount(writer, "ext4")}, nil, false},
		{"many writers", []*csi.VolumeCapability{block(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)}, nil, false},
		{"one of two", []*csi.VolumeCapability{block(writer), mount(writer, "zfs")}, nil, false},
		{"other pool", []*csi.VolumeCapability{block(writer)}, map[string]string{"pool": "fast"}, false},
		{"fixed", []*csi.VolumeCapability{block(writer)}, map[string]string{"subformat": "fixed"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := c.ValidateVolumeCapabilities(t.Context(), &csi.ValidateVolumeCapabilitiesRequest{
				VolumeId: "a", VolumeCapabilities: tt.caps, Parameters: tt.params})
			if err != nil {
				t.Fatal(err)
			}
			if got := r.GetConfirmed() != nil; got != tt.ok || got == (r.GetMessage() != "") {
				t.Fatalf("got %v", r)
			}
			if tt.ok && len(r.GetConfirmed().GetVolumeCapabilities()) != len(tt.caps) {
				t.Fatalf("got %v", r)
			}
		})
	}
	_, err := c.ValidateVolumeCapabilities(t.Context(), &csi.ValidateVolumeCapabilitiesRequest{VolumeId: "a"})
	wantCode(t, err, codes.InvalidArgument)
	_, err = c.ValidateVolumeCapabilities(t.Context(), &csi.ValidateVolumeCapabilitiesRequest{VolumeId: "b", VolumeCapabilities: []*csi.VolumeCapability{block(writer)}})
	wantCode(t, err, codes.NotFound)
}

func TestConfigCheck(t *testing.T) {
	f := newFake()
	ctl := func(onlyOn string) *Controller {
		return &Controller{Volumes: f, Attachments: f, Snapshots: f, Pools: []Pool{{Name: "p", OnlyOn: onlyOn}}}
	}
	health := Health{Pools: &f.health, Figures: f.health.figures, Here: &f.health}
	for name, c := range map[string]Config{
		"nothing":              {},
		"no node id":           {Node: &NodeService{}},
		"node id is no label":  {Controller: ctl("a/b")},
		"node id is too long":  {Node: &NodeService{ID: "n", Pools: ctl(strings.Repeat("x", 64)).Pools}},
		"node id far too long": {Node: &NodeService{ID: strings.Repeat("x", 257)}},
	} {
		c.Health = health
		if _, err := New(t.Context(), c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := New(t.Context(), Config{Controller: ctl("node-1.example.com"), Node: &NodeService{ID: strings.Repeat("x", 256), Pools: ctl("").Pools}, Health: health}); err != nil {
		t.Errorf("good one: %v", err)
	}
}

var errDisk = errors.New("disk on fire, password=hunter2")
