package driver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// fakeMaps names count ranges of 512 bytes, 4096 apart, on a disk of 64 TiB, and
// remembers what it was asked.
type fakeMaps struct {
	count int
	err   error // what it answers after them
	asked []any
}

const fakeDisk = int64(64) << 40

func (f *fakeMaps) Allocated(_ context.Context, snapshot string, off int64, fn func(pool.Range) error) (int64, error) {
	f.asked = []any{snapshot, off}
	return f.each(off, fn)
}

func (f *fakeMaps) Delta(_ context.Context, base, target string, off int64, fn func(pool.Range) error) (int64, error) {
	f.asked = []any{base, target, off}
	return f.each(off, fn)
}

func (f *fakeMaps) each(off int64, fn func(pool.Range) error) (int64, error) {
	if e, ok := errors.AsType[panicking](f.err); ok {
		panic(string(e))
	}
	for i := range f.count {
		if err := fn(pool.Range{Offset: off + int64(i)*4096, Length: 512, Disk: fakeDisk}); err != nil {
			return fakeDisk, err
		}
	}
	return fakeDisk, f.err
}

func serveMaps(t *testing.T, m Maps, change ...func(*Config)) csi.SnapshotMetadataClient {
	t.Helper()
	change = append(change, func(c *Config) { c.Controller.Maps = m })
	return csi.NewSnapshotMetadataClient(serve(t, newFake(), change...))
}

// response is what both streams send.
type response interface {
	proto.Message
	GetBlockMetadataType() csi.BlockMetadataType
	GetVolumeCapacityBytes() int64
	GetBlockMetadata() []*csi.BlockMetadata
}

// received reads a stream to its end, and checks what holds for every one.
func received[R response](recv func() (R, error), from int64, most int) (ranges [][2]int64, disk int64, err error) {
	last, messages := int64(-1), 0
	for ; ; messages++ {
		r, err := recv()
		if errors.Is(err, io.EOF) && messages > 0 {
			return ranges, disk, nil
		}
		if err != nil {
			return ranges, disk, err
		}
		switch size := proto.Size(r); {
		case r.GetBlockMetadataType() != csi.BlockMetadataType_VARIABLE_LENGTH:
			return nil, 0, fmt.Errorf("type %v", r.GetBlockMetadataType())
		case messages > 0 && disk != r.GetVolumeCapacityBytes():
			return nil, 0, fmt.Errorf("the capacity was %d, and is %d", disk, r.GetVolumeCapacityBytes())
		case len(r.GetBlockMetadata()) > most || size > 1<<20:
			return nil, 0, fmt.Errorf("a message of %d bytes with %d ranges, at most %d", size, len(r.GetBlockMetadata()), most)
		}
		disk = r.GetVolumeCapacityBytes()
		for _, b := range r.GetBlockMetadata() {
			if b.GetByteOffset() < last || b.GetSizeBytes() <= 0 || b.GetByteOffset()+b.GetSizeBytes() <= from {
				return nil, 0, fmt.Errorf("%v after %d, from %d on", b, last, from)
			}
			last = b.GetByteOffset() + b.GetSizeBytes()
			ranges = append(ranges, [2]int64{b.GetByteOffset(), b.GetSizeBytes()})
		}
	}
}

func allocatedOf(t *testing.T, c csi.SnapshotMetadataClient, r *csi.GetMetadataAllocatedRequest, most int) ([][2]int64, int64, error) {
	t.Helper()
	s, err := c.GetMetadataAllocated(t.Context(), r)
	if err != nil {
		return nil, 0, err
	}
	return received(s.Recv, r.GetStartingOffset(), most)
}

func deltaOf(t *testing.T, c csi.SnapshotMetadataClient, r *csi.GetMetadataDeltaRequest, most int) ([][2]int64, int64, error) {
	t.Helper()
	s, err := c.GetMetadataDelta(t.Context(), r)
	if err != nil {
		return nil, 0, err
	}
	return received(s.Recv, r.GetStartingOffset(), most)
}

func TestMetadataPages(t *testing.T) {
	for _, tt := range []struct {
		count int
		most  int32
		limit int
	}{
		{0, 0, 0}, {1, 1, 1}, {10, 3, 3}, {9, 3, 3}, {100_000, 0, maxRanges}, {maxRanges + 1, 1 << 30, maxRanges},
	} {
		m := &fakeMaps{count: tt.count}
		c := serveMaps(t, m)
		got, disk, err := allocatedOf(t, c, &csi.GetMetadataAllocatedRequest{SnapshotId: "s", StartingOffset: 1 << 45, MaxResults: tt.most}, tt.limit)
		if err != nil || disk != fakeDisk || len(got) != tt.count || fmt.Sprint(m.asked) != fmt.Sprint([]any{"s", int64(1 << 45)}) {
			t.Fatalf("%+v: %d ranges of %d, asked %v: %v", tt, len(got), disk, m.asked, err)
		}
		got, disk, err = deltaOf(t, c, &csi.GetMetadataDeltaRequest{BaseSnapshotId: "b", TargetSnapshotId: "t", MaxResults: tt.most}, tt.limit)
		if err != nil || disk != fakeDisk || len(got) != tt.count || fmt.Sprint(m.asked) != fmt.Sprint([]any{"b", "t", int64(0)}) {
			t.Fatalf("%+v: %d ranges of %d, asked %v: %v", tt, len(got), disk, m.asked, err)
		}
	}
}

func TestMetadataRefuses(t *testing.T) {
	m := &fakeMaps{}
	c := serveMaps(t, m)
	for _, tt := range []struct {
		name         string
		base, target string
		most         int32
		err          error
		code         codes.Code
	}{
		{name: "no target", base: "b", code: codes.InvalidArgument},
		{name: "negative max_results", base: "b", target: "t", most: -1, code: codes.InvalidArgument},
		{name: "a long id", base: "b", target: s128 + "t", code: codes.InvalidArgument},
		{name: "unknown", base: "b", target: "t", err: pool.ErrNoSnapshot, code: codes.NotFound},
		{name: "offset", base: "b", target: "t", err: vhdx.ErrOutOfRange, code: codes.OutOfRange},
		{name: "unrelated", base: "b", target: "t", err: vhdx.ErrUnrelated, code: codes.FailedPrecondition},
		{name: "share away", base: "b", target: "t", err: pool.ErrAway, code: codes.Unavailable},
		{name: "panic", base: "b", target: "t", err: panicking("boom"), code: codes.Internal},
	} {
		m.err = tt.err
		_, _, err := deltaOf(t, c, &csi.GetMetadataDeltaRequest{BaseSnapshotId: tt.base, TargetSnapshotId: tt.target, MaxResults: tt.most}, 0)
		wantCode(t, err, tt.code)
		_, _, err = allocatedOf(t, c, &csi.GetMetadataAllocatedRequest{SnapshotId: tt.target, MaxResults: tt.most}, 0)
		wantCode(t, err, tt.code)
	}
	_, _, err := deltaOf(t, c, &csi.GetMetadataDeltaRequest{TargetSnapshotId: "t"}, 0)
	wantCode(t, err, codes.InvalidArgument)
}

// A failure after some pages is told as one, and not as the end.
func TestMetadataBreaksOff(t *testing.T) {
	m := &fakeMaps{count: 10, err: pool.ErrAway}
	got, _, err := allocatedOf(t, serveMaps(t, m), &csi.GetMetadataAllocatedRequest{SnapshotId: "s", MaxResults: 2}, 2)
	wantCode(t, err, codes.Unavailable)
	if len(got) != 10 {
		t.Fatalf("%d ranges before it", len(got))
	}
}

// endless names ranges until it is told to stop, and says when it has.
type endless struct {
	fakeMaps
	ended chan error
}

func (e *endless) Allocated(ctx context.Context, _ string, _ int64, fn func(pool.Range) error) (int64, error) {
	for off := int64(0); ; off += 4096 {
		if err := fn(pool.Range{Offset: off, Length: 512, Disk: fakeDisk}); err != nil {
			e.ended <- err
			return fakeDisk, err
		}
	}
}

// A caller that leaves ends the work, and so its hold on the layers; and all
// streams are observed as other calls are.
func TestMetadataCallerLeaves(t *testing.T) {
	told := make(chan Call, 1)
	m := &endless{ended: make(chan error, 1)}
	c := serveMaps(t, m, func(c *Config) {
		c.Observe = func(_ context.Context, call Call) { told <- call }
	})
	ctx, cancel := context.WithCancel(t.Context())
	s, err := c.GetMetadataAllocated(ctx, &csi.GetMetadataAllocatedRequest{SnapshotId: "s", MaxResults: 1})
	if err == nil {
		_, err = s.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-m.ended; err == nil {
		t.Fatal("it went on")
	}
	if call := <-told; call.Method != "GetMetadataAllocated" || call.Code != codes.Canceled.String() || call.Took <= 0 {
		t.Fatalf("told %+v", call)
	}
}

// I-DRV-8.
func TestMetadataIsAdvertised(t *testing.T) {
	f := newFake()
	id := csi.NewIdentityClient(serve(t, f))
	caps, err := id.GetPluginCapabilities(t.Context(), &csi.GetPluginCapabilitiesRequest{})
	if err != nil || !strings.Contains(caps.String(), csi.PluginCapability_Service_SNAPSHOT_METADATA_SERVICE.String()) {
		t.Fatalf("capabilities %v, %v", caps, err)
	}
}
