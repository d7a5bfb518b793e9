package driver

import (
	"context"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// Maps says what snapshots hold. *[pool.Set] has it.
type Maps interface {
	// Allocated calls fn, in ascending order, for each part of a snapshot from off
	// on that may hold data, and returns the size of its disk.
	Allocated(ctx context.Context, snapshot string, off int64, fn func(pool.Range) error) (int64, error)
	// Delta calls fn, in ascending order, for each part of target from off on that
	// may differ from base, and returns the size of target's disk.
	Delta(ctx context.Context, base, target string, off int64, fn func(pool.Range) error) (int64, error)
}

const (
	// maxRanges bounds a message: 24 bytes each at most, a tenth of what a gRPC
	// client takes.
	maxRanges = 16 << 10
	// maxStreams is how many streams are made at once. The others wait. One whose
	// share hangs keeps its place, and with it a thread in the kernel.
	maxStreams = 32
)

// metadataServer streams block maps of snapshots. Their type is VARIABLE_LENGTH:
// ranges are exact to the sector and as long as they can be, so that the map of a
// full disk is one tuple. Of a fixed length they would be a block's, up to 256
// MiB to be copied for a sector, or a sector's, 2^31 tuples for each TiB.
type metadataServer struct {
	csi.UnimplementedSnapshotMetadataServer
	maps   Maps
	places chan struct{} // maxStreams of them
}

// rangePage is what one message holds.
type rangePage struct {
	disk   int64
	ranges []*csi.BlockMetadata
}

// walk calls fn for each range of a map and returns the disk's size.
type walk func(ctx context.Context, fn func(pool.Range) error) (int64, error)

func (s *metadataServer) GetMetadataAllocated(r *csi.GetMetadataAllocatedRequest, out csi.SnapshotMetadata_GetMetadataAllocatedServer) error {
	if err := required("snapshot_id", r.GetSnapshotId()); err != nil {
		return err
	}
	allocated := func(ctx context.Context, fn func(pool.Range) error) (int64, error) {
		return s.maps.Allocated(ctx, r.GetSnapshotId(), r.GetStartingOffset(), fn)
	}
	return s.stream(out.Context(), r.GetMaxResults(), allocated, func(p rangePage) error {
		return out.Send(&csi.GetMetadataAllocatedResponse{
			BlockMetadataType: csi.BlockMetadataType_VARIABLE_LENGTH, VolumeCapacityBytes: p.disk, BlockMetadata: p.ranges,
		})
	})
}

func (s *metadataServer) GetMetadataDelta(r *csi.GetMetadataDeltaRequest, out csi.SnapshotMetadata_GetMetadataDeltaServer) error {
	if err := required("base_snapshot_id", r.GetBaseSnapshotId()); err != nil {
		return err
	}
	if err := required("target_snapshot_id", r.GetTargetSnapshotId()); err != nil {
		return err
	}
	delta := func(ctx context.Context, fn func(pool.Range) error) (int64, error) {
		return s.maps.Delta(ctx, r.GetBaseSnapshotId(), r.GetTargetSnapshotId(), r.GetStartingOffset(), fn)
	}
	return s.stream(out.Context(), r.GetMaxResults(), delta, func(p rangePage) error {
		return out.Send(&csi.GetMetadataDeltaResponse{
			BlockMetadataType: csi.BlockMetadataType_VARIABLE_LENGTH, VolumeCapacityBytes: p.disk, BlockMetadata: p.ranges,
		})
	})
}

// stream sends a map page by page. It is made beside the caller, who may leave
// although the share hangs; only this goroutine sends.
func (s *metadataServer) stream(ctx context.Context, most int32, w walk, send func(rangePage) error) error {
	if most < 0 {
		return fmt.Errorf("%w: max_results is negative", errInvalid)
	}
	if most == 0 || most > maxRanges {
		most = maxRanges
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	select {
	case s.places <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("wait for %d other streams: %w", cap(s.places), ctx.Err())
	}
	pages, ended := make(chan rangePage), make(chan error, 1)
	go func() {
		defer func() { <-s.places }()
		ended <- guard(ctx, func() error { return paginate(ctx, int(most), w, pages) })
	}()
	for {
		select {
		case p := <-pages:
			if err := send(p); err != nil {
				return err
			}
		case err := <-ended:
			return err
		case <-ctx.Done():
			return fmt.Errorf("make a snapshot's block map: %w", ctx.Err())
		}
	}
}

// paginate makes pages of a map; one at least, which tells the disk's size.
func paginate(ctx context.Context, most int, w walk, pages chan<- rangePage) error {
	var p rangePage
	put := func() error {
		select {
		case pages <- p:
			p.ranges = nil
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	sent := false
	size, err := w(ctx, func(r pool.Range) error {
		p.disk = r.Disk
		p.ranges = append(p.ranges, &csi.BlockMetadata{ByteOffset: r.Offset, SizeBytes: r.Length})
		if len(p.ranges) < most {
			return nil
		}
		sent = true
		return put()
	})
	if err != nil || sent && len(p.ranges) == 0 {
		return err
	}
	p.disk = size
	return put()
}
