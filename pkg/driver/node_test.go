package driver

import (
	"bytes"
	"flag"
	"strings"
	"sync"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/emptypb"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/node"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

func TestNodeStage(t *testing.T) {
	f := newFake()
	n := csi.NewNodeClient(serve(t, f))
	for _, tt := range []struct {
		name string
		cap  *csi.VolumeCapability
		pub  map[string]string
		want node.StageRequest
	}{
		{"filesystem", mount(writer, "xfs", "noatime"), nil, node.StageRequest{FSType: "xfs", MountFlags: []string{"noatime"}}},
		{"block", block(writer), nil, node.StageRequest{Block: true}},
		{"attached read-only", block(writer), map[string]string{readOnlyKey: "true"}, node.StageRequest{Block: true, ReadOnly: true}},
		{"reader", block(csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY), map[string]string{readOnlyKey: "false"},
			node.StageRequest{Block: true, ReadOnly: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := n.NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{VolumeId: "a", StagingTargetPath: "/stage",
				VolumeCapability: tt.cap, PublishContext: tt.pub})
			if err != nil {
				t.Fatal(err)
			}
			tt.want.VolumeID, tt.want.StagingPath = "a", "/stage"
			if d := cmp.Diff(tt.want, f.last(t)); d != "" {
				t.Fatalf("(-want +got)\n%s", d)
			}
		})
	}
}

func TestNodePublish(t *testing.T) {
	f := newFake()
	n := csi.NewNodeClient(serve(t, f))
	for _, tt := range []struct {
		name     string
		cap      *csi.VolumeCapability
		readOnly bool
		pub      map[string]string
		want     node.PublishRequest
	}{
		{"writer", mount(writer, "ext4"), false, map[string]string{readOnlyKey: "false"}, node.PublishRequest{FSType: "ext4", SingleWriter: true}},
		{"single writer", block(csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER), false, nil, node.PublishRequest{Block: true, SingleWriter: true}},
		{"multi writer", block(csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER), true, nil, node.PublishRequest{Block: true, ReadOnly: true}},
		{"reader", block(csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY), false, nil, node.PublishRequest{Block: true, ReadOnly: true}},
		{"attached read-only", mount(writer, ""), false, map[string]string{readOnlyKey: "true"}, node.PublishRequest{ReadOnly: true, SingleWriter: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := n.NodePublishVolume(t.Context(), &csi.NodePublishVolumeRequest{VolumeId: "a", StagingTargetPath: "/stage",
				TargetPath: "/target", VolumeCapability: tt.cap, Readonly: tt.readOnly, PublishContext: tt.pub})
			if err != nil {
				t.Fatal(err)
			}
			tt.want.VolumeID, tt.want.StagingPath, tt.want.TargetPath = "a", "/stage", "/target"
			if d := cmp.Diff(tt.want, f.last(t)); d != "" {
				t.Fatalf("(-want +got)\n%s", d)
			}
		})
	}
}

func TestNodeRefuses(t *testing.T) {
	f := newFake()
	n := csi.NewNodeClient(serve(t, f))
	ctx := t.Context()
	b := block(writer)
	for _, tt := range []struct {
		name string
		code codes.Code
		call func() (any, error)
	}{
		{"stage without id", codes.InvalidArgument, func() (any, error) {
			return n.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{StagingTargetPath: "/s", VolumeCapability: b})
		}},
		{"stage without path", codes.InvalidArgument, func() (any, error) {
			return n.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{VolumeId: "a", VolumeCapability: b})
		}},
		{"stage at a relative path", codes.InvalidArgument, func() (any, error) {
			return n.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{VolumeId: "a", StagingTargetPath: "s", VolumeCapability: b})
		}},
		{"stage without capability", codes.InvalidArgument, func() (any, error) {
			return n.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{VolumeId: "a", StagingTargetPath: "/s"})
		}},
		{"unstage without path", codes.InvalidArgument, func() (any, error) {
			return n.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: "a"})
		}},
		{"publish without staging", codes.FailedPrecondition, func() (any, error) {
			return n.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{VolumeId: "a", TargetPath: "/t", VolumeCapability: b})
		}},
		{"publish through dots", codes.InvalidArgument, func() (any, error) {
			return n.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{VolumeId: "a", TargetPath: "/t/../etc", StagingTargetPath: "/s", VolumeCapability: b})
		}},
		{"unpublish without path", codes.InvalidArgument, func() (any, error) {
			return n.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: "a"})
		}},
		{"stats without path", codes.InvalidArgument, func() (any, error) {
			return n.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: "a"})
		}},
		{"expand without path", codes.InvalidArgument, func() (any, error) {
			return n.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{VolumeId: "a"})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := tt.call()
			wantCode(t, err, tt.code)
		})
	}
	if len(f.calls) != 0 {
		t.Fatalf("something was done: %v", f.calls)
	}
}

func TestNodeStats(t *testing.T) {
	f := newFake()
	n := csi.NewNodeClient(serve(t, f))
	f.stats = node.Stats{Bytes: node.Usage{Total: 10, Used: 3, Available: 6}, Inodes: node.Usage{Total: 5, Used: 1, Available: 4}}
	req := &csi.NodeGetVolumeStatsRequest{VolumeId: "a", VolumePath: "some/path"}
	r, err := n.NodeGetVolumeStats(t.Context(), req)
	want := &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
		{Unit: csi.VolumeUsage_BYTES, Total: 10, Used: 3, Available: 6}, {Unit: csi.VolumeUsage_INODES, Total: 5, Used: 1, Available: 4}}}
	if d := cmp.Diff(want, r, protocmp.Transform()); d != "" || err != nil {
		t.Fatalf("%v (-want +got)\n%s", err, d)
	}
	f.stats.Block = true
	r, err = n.NodeGetVolumeStats(t.Context(), req)
	if err != nil || len(r.GetUsage()) != 1 {
		t.Fatalf("block: %v, %v", r, err)
	}
	f.err = node.ErrNotFound
	_, err = n.NodeGetVolumeStats(t.Context(), req)
	wantCode(t, err, codes.NotFound)
}

func TestNodeExpand(t *testing.T) {
	f := newFake()
	n := csi.NewNodeClient(serve(t, f))
	f.size = 2 << 30
	for _, tt := range []struct {
		need, limit int64
		code        codes.Code
	}{{0, 0, codes.OK}, {2 << 30, 0, codes.OK}, {1 << 30, 2 << 30, codes.OK}, {3 << 30, 0, codes.OutOfRange}, {0, 1 << 30, codes.OutOfRange}} {
		r, err := n.NodeExpandVolume(t.Context(), &csi.NodeExpandVolumeRequest{VolumeId: "a", VolumePath: "/t",
			CapacityRange: &csi.CapacityRange{RequiredBytes: tt.need, LimitBytes: tt.limit}})
		wantCode(t, err, tt.code)
		if err == nil && r.GetCapacityBytes() != 2<<30 {
			t.Errorf("got %v", r)
		}
	}
	f.err = node.ErrNotFound
	_, err := n.NodeExpandVolume(t.Context(), &csi.NodeExpandVolumeRequest{VolumeId: "fake", VolumePath: "some/path"})
	wantCode(t, err, codes.NotFound)
}

// TestProbeAsksNobody: I-DRV-6. Everything below is broken, and the plugin
// still says that it lives.
func TestProbeAsksNobody(t *testing.T) {
	f := newFake()
	f.err = panicking("the share is gone")
	conn := serve(t, f)
	r, err := csi.NewIdentityClient(conn).Probe(t.Context(), &csi.ProbeRequest{})
	if err != nil || !r.GetReady().GetValue() {
		t.Fatalf("Probe: %v, %v", r, err)
	}
	for _, service := range []string{"", "csi.v1.Controller", "csi.v1.Node", "csi.v1.Identity"} {
		h, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
		if err != nil || h.GetStatus() != healthpb.HealthCheckResponse_SERVING {
			t.Fatalf("health of %q: %v, %v", service, h, err)
		}
	}
	if len(f.calls) != 0 {
		t.Fatalf("it asked: %v", f.calls)
	}
}

// TestCapabilitiesAreImplemented: I-DRV-8. Every call that there is has an answer
// of ours, if only that its arguments are missing.
func TestCapabilitiesAreImplemented(t *testing.T) {
	conn := serve(t, newFake())
	for _, d := range []grpc.ServiceDesc{csi.Controller_ServiceDesc, csi.Node_ServiceDesc} {
		for _, m := range d.Methods {
			err := conn.Invoke(t.Context(), "/"+d.ServiceName+"/"+m.MethodName, &emptypb.Empty{}, &emptypb.Empty{})
			if status.Code(err) == codes.Unimplemented {
				t.Errorf("%s: %v", m.MethodName, err)
			}
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestLog: one line per call, and I-DRV-7 at the highest verbosity.
func TestLog(t *testing.T) {
	out := &lockedBuffer{}
	tc := textlogger.NewConfig(textlogger.Output(out))
	fl := flag.NewFlagSet("", flag.PanicOnError)
	tc.AddFlags(fl)
	if err := fl.Set("v", "9"); err != nil {
		t.Fatal(err)
	}
	f := newFake()
	f.err = errDisk
	conn := serveWithLog(klog.NewContext(t.Context(), textlogger.NewLogger(tc)), t, f)
	secret := map[string]string{"user": "hunter2", "password": "hunter2"}
	ctx := t.Context()
	_, _ = csi.NewControllerClient(conn).CreateVolume(ctx, createReq(func(r *csi.CreateVolumeRequest) { r.Secrets = secret }))
	_, _ = csi.NewNodeClient(conn).NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{VolumeId: "a", StagingTargetPath: "/s", Secrets: secret,
		PublishContext: map[string]string{"apiToken": "hunter2", "opts": "vers=3,password=hunter2"}, VolumeContext: map[string]string{"password": "hunter2"},
		VolumeCapability: mount(writer, "ext4", "noatime", "password=hunter2")})
	_, err := csi.NewNodeClient(conn).NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: "vol-7", StagingTargetPath: "/s"})
	wantCode(t, err, codes.Internal)
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("the error tells the password: %v", err)
	}
	text := out.String()
	if strings.Contains(text, "hunter2") {
		t.Errorf("the log tells the password:\n%s", text)
	}
	for _, want := range []string{`method="NodeUnstageVolume"`, `volume="vol-7"`, `code="Internal"`, "duration=", "noatime", "vers=3"} {
		if !strings.Contains(text, want) {
			t.Errorf("the log lacks %s:\n%s", want, text)
		}
	}
	if n := strings.Count(text, `"Call failed"`); n != 3 {
		t.Errorf("%d lines for 3 calls:\n%s", n, text)
	}
}

var _ Volumes = (*pool.Set)(nil)
var _ Attachments = (*pool.Set)(nil)
var _ Mounts = (*node.Manager)(nil)
var _ Usage = (*node.Manager)(nil)
