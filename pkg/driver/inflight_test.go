package driver

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestWorkOutlivesCaller: I-DRV-1, I-DRV-2. The caller leaves at its deadline;
// the work does not notice, a second caller is told to come again, and a third
// finds the result.
func TestWorkOutlivesCaller(t *testing.T) {
	f := newFake()
	f.hold = make(chan struct{})
	started := make(chan context.Context, 9)
	f.seen = func(ctx context.Context) { started <- ctx }
	c := csi.NewControllerClient(serve(t, f))
	req := &csi.CreateVolumeRequest{Name: "v", VolumeCapabilities: []*csi.VolumeCapability{block(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)}}

	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := c.CreateVolume(ctx, req)
		left <- err
	}()
	work := <-started
	cancel()
	if err := <-left; err == nil {
		t.Fatal("a cancelled call succeeded")
	}
	_, err := c.CreateVolume(t.Context(), req)
	wantCode(t, err, codes.Aborted)
	if work.Err() != nil {
		t.Fatalf("the work saw its caller leave: %v", work.Err())
	}
	if _, ok := work.Deadline(); !ok {
		t.Fatal("the work has no deadline of its own")
	}
	close(f.hold)
	for {
		r, err := c.CreateVolume(t.Context(), req)
		if err == nil {
			if r.GetVolume().GetVolumeId() != "id-v" {
				t.Fatalf("got %v", r)
			}
			return
		}
		wantCode(t, err, codes.Aborted)
		time.Sleep(time.Millisecond)
	}
}

// TestOneWorkPerVolume: controller and node calls of one volume exclude each
// other, those of another volume do not, and reads never wait.
func TestOneWorkPerVolume(t *testing.T) {
	f := newFake()
	f.hold = make(chan struct{})
	started := make(chan context.Context, 9)
	f.seen = func(ctx context.Context) { started <- ctx }
	conn := serve(t, f)
	c, n := csi.NewControllerClient(conn), csi.NewNodeClient(conn)
	f.volumes["a"] = pool1("a")

	done := make(chan error, 2)
	stage := func(id string) {
		_, err := n.NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: "/s",
			VolumeCapability: block(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)})
		done <- err
	}
	go stage("a")
	<-started
	for name, call := range map[string]func() error{
		"unstage": func() error {
			_, err := n.NodeUnstageVolume(t.Context(), &csi.NodeUnstageVolumeRequest{VolumeId: "a", StagingTargetPath: "/s"})
			return err
		},
		"delete": func() error {
			_, err := c.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: "a"})
			return err
		},
		"expand": func() error {
			_, err := c.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{VolumeId: "a", CapacityRange: &csi.CapacityRange{RequiredBytes: 1 << 30}})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) { wantCode(t, call(), codes.Aborted) })
	}
	if _, err := c.ControllerGetVolume(t.Context(), &csi.ControllerGetVolumeRequest{VolumeId: "a"}); err != nil {
		t.Fatalf("a read waited or failed: %v", err)
	}
	go stage("b")
	<-started
	close(f.hold)
	if err := errors.Join(<-done, <-done); err != nil {
		t.Fatal(err)
	}
}

func TestDrain(t *testing.T) {
	f := newInflight(time.Minute)
	release := make(chan struct{})
	left, leave := context.WithCancel(t.Context())
	began := make(chan struct{})
	go func() { <-began; leave() }()
	err := only(left, f, "k", "Work", func(context.Context) error { close(began); <-release; return nil })
	if !errors.Is(err, errPending) {
		t.Fatalf("got %v", err)
	}
	short, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.drain(short); !errors.Is(err, context.Canceled) {
		t.Fatalf("drain did not give up: %v", err)
	}
	if err := only(t.Context(), f, "other", "Work", func(context.Context) error { return nil }); !errors.Is(err, errStopping) {
		t.Fatalf("new work while stopping: %v", err)
	}
	close(release)
	if err := f.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestShareHangs: polling a share that does not answer leaves a bounded number
// of calls waiting in the kernel, and callers are answered in time.
func TestShareHangs(t *testing.T) {
	f := newFake()
	f.hold = make(chan struct{})
	c := csi.NewControllerClient(serve(t, f))
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		_, err := c.ListVolumes(ctx, &csi.ListVolumesRequest{})
		cancel()
		if status.Code(err) == codes.Unavailable {
			break // every place is taken by a read that hangs
		}
		wantCode(t, err, codes.DeadlineExceeded)
	}
	close(f.hold)
	for {
		_, err := c.ListVolumes(t.Context(), &csi.ListVolumesRequest{})
		if err == nil {
			return
		}
		wantCode(t, err, codes.Unavailable)
		time.Sleep(time.Millisecond)
	}
}

// TestPanic: the caller gets Internal, the volume is not locked for ever, and
// the plugin lives.
func TestPanic(t *testing.T) {
	f := newFake()
	f.err = panicking("boom")
	c := csi.NewControllerClient(serve(t, f))
	for range 2 {
		_, err := c.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: "a"}) // in the work
		wantCode(t, err, codes.Internal)
		_, err = c.ListVolumes(t.Context(), &csi.ListVolumesRequest{}) // in the handler
		wantCode(t, err, codes.Internal)
	}
}
