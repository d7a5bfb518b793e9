package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// Groups is what the group controller service needs of the pools. *[pool.Set]
// has it.
type Groups interface {
	ReserveGroup(ctx context.Context, name string, volumes []string) (pool.Group, error)
	CommitGroup(ctx context.Context, id string) (pool.Group, error)
	Group(ctx context.Context, id string) (pool.Group, error)
	DeleteGroup(ctx context.Context, id string) error
}

// groupController takes snapshots of several volumes at one point in time.
type groupController struct {
	csi.UnimplementedGroupControllerServer
	*controller
	groups Groups
}

func (s *groupController) GroupControllerGetCapabilities(context.Context, *csi.GroupControllerGetCapabilitiesRequest) (*csi.GroupControllerGetCapabilitiesResponse, error) {
	return &csi.GroupControllerGetCapabilitiesResponse{Capabilities: []*csi.GroupControllerServiceCapability{{
		Type: &csi.GroupControllerServiceCapability_Rpc{Rpc: &csi.GroupControllerServiceCapability_RPC{
			Type: csi.GroupControllerServiceCapability_RPC_CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT}}}}}, nil
}

func (s *groupController) CreateVolumeGroupSnapshot(ctx context.Context, r *csi.CreateVolumeGroupSnapshotRequest) (*csi.CreateVolumeGroupSnapshotResponse, error) {
	if err := volumeName(r.GetName()); err != nil {
		return nil, err
	}
	if len(r.GetSourceVolumeIds()) == 0 {
		return nil, fmt.Errorf("%w: source_volume_ids are missing", errInvalid)
	}
	// What is mounted is always frozen: no point in time is one without that.
	if _, err := parseSnapshotClass(r.GetParameters()); err != nil {
		return nil, err
	}
	g, err := run(ctx, s.work, "group "+r.GetName(), "CreateVolumeGroupSnapshot", func(ctx context.Context) (pool.Group, error) {
		return s.takeGroup(ctx, r.GetName(), r.GetSourceVolumeIds())
	})
	if err != nil {
		return nil, err
	}
	return &csi.CreateVolumeGroupSnapshotResponse{GroupSnapshot: s.describeGroup(g)}, nil
}

// takeGroup: every volume in use takes no writes -> every snapshot is cut ->
// writes go on -> the group exists. Each cut proves that its volume's freeze
// has lasted until then, and all of them had begun before the first cut: so all
// snapshots are of the moment between. Whatever goes wrong, nothing is left.
func (s *groupController) takeGroup(ctx context.Context, name string, volumes []string) (pool.Group, error) {
	g, err := s.groups.ReserveGroup(ctx, name, volumes)
	if err != nil || g.Taken {
		return g, err
	}
	err = s.cutTogether(ctx, g)
	if err == nil {
		var done pool.Group
		if done, err = s.groups.CommitGroup(ctx, g.ID); err == nil {
			return done, nil
		}
	}
	return pool.Group{}, errors.Join(err, s.deleteGroup(context.WithoutCancel(ctx), g))
}

func (s *groupController) cutTogether(ctx context.Context, g pool.Group) (err error) {
	held, err := s.freezeAll(ctx, g)
	defer func() {
		err = errors.Join(err, s.thawAll(context.WithoutCancel(ctx), g, held))
	}()
	if err != nil {
		return err
	}
	return each(g.Snapshots, func(i int, snap pool.Snapshot) error {
		if !held[i] {
			_, err := s.Snapshots.Cut(ctx, snap.ID, pool.Live{})
			if errors.Is(err, pool.ErrInUse) {
				err = fmt.Errorf("%w: volume %s has come into use meanwhile; try again", errPending, snap.Volume)
			}
			return err
		}
		_, err := s.Holders.Cut(ctx, snap.Volume, snap.ID, control.CutOptions{Token: g.ID})
		return err
	})
}

// freezeAll keeps writes away from all volumes that somebody has open.
func (s *groupController) freezeAll(ctx context.Context, g pool.Group) (held []bool, err error) {
	held = make([]bool, len(g.Snapshots))
	if s.Holders == nil {
		return held, nil
	}
	err = each(g.Snapshots, func(i int, snap pool.Snapshot) error {
		_, err := s.Holders.Freeze(ctx, snap.Volume, g.ID, control.FreezeLimit)
		if errors.Is(err, control.ErrNotHeld) {
			return nil
		}
		held[i] = true // also after an error: it may have happened
		return err
	})
	return held, err
}

func (s *groupController) thawAll(ctx context.Context, g pool.Group, held []bool) error {
	return each(g.Snapshots, func(i int, snap pool.Snapshot) error {
		if !held[i] {
			return nil
		}
		err := s.Holders.Thaw(ctx, snap.Volume, g.ID)
		if errors.Is(err, control.ErrNotHeld) {
			return nil
		}
		return err
	})
}

// each runs do for all snapshots at once.
func each(all []pool.Snapshot, do func(i int, snap pool.Snapshot) error) error {
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, snap := range all {
		wg.Go(func() { errs[i] = do(i, snap) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (s *groupController) deleteGroup(ctx context.Context, g pool.Group) error {
	if err := s.groups.DeleteGroup(ctx, g.ID); err != nil {
		return err
	}
	if s.Untended != nil {
		for _, snap := range g.Snapshots {
			s.Untended(snap.Volume)
		}
	}
	return nil
}

func (s *groupController) describeGroup(g pool.Group) *csi.VolumeGroupSnapshot {
	r := &csi.VolumeGroupSnapshot{GroupSnapshotId: g.ID, CreationTime: timestamppb.New(g.Created), ReadyToUse: g.Taken}
	for _, snap := range g.Snapshots {
		r.Snapshots = append(r.Snapshots, s.describeSnapshot(snap))
	}
	return r
}

func (s *groupController) DeleteVolumeGroupSnapshot(ctx context.Context, r *csi.DeleteVolumeGroupSnapshotRequest) (*csi.DeleteVolumeGroupSnapshotResponse, error) {
	id := r.GetGroupSnapshotId()
	if err := required("group_snapshot_id", id); err != nil {
		return nil, err
	}
	err := only(ctx, s.work, id, "DeleteVolumeGroupSnapshot", func(ctx context.Context) error {
		g, err := s.groups.Group(ctx, id)
		if errors.Is(err, pool.ErrNoSnapshot) {
			return s.groups.DeleteGroup(ctx, id) // it may be half gone
		}
		if err == nil {
			err = sameMembers(g, r.GetSnapshotIds())
		}
		if err != nil {
			return err
		}
		return s.deleteGroup(ctx, g)
	})
	if err != nil {
		return nil, err
	}
	return &csi.DeleteVolumeGroupSnapshotResponse{}, nil
}

func (s *groupController) GetVolumeGroupSnapshot(ctx context.Context, r *csi.GetVolumeGroupSnapshotRequest) (*csi.GetVolumeGroupSnapshotResponse, error) {
	id := r.GetGroupSnapshotId()
	if err := required("group_snapshot_id", id); err != nil {
		return nil, err
	}
	g, err := read(ctx, s.reads, func(ctx context.Context) (pool.Group, error) { return s.groups.Group(ctx, id) })
	if err == nil && !g.Taken {
		err = fmt.Errorf("group snapshot %s: %w: it has not been taken", id, pool.ErrNoSnapshot)
	}
	if err == nil {
		err = sameMembers(g, r.GetSnapshotIds())
	}
	if err != nil {
		return nil, err
	}
	return &csi.GetVolumeGroupSnapshotResponse{GroupSnapshot: s.describeGroup(g)}, nil
}

// sameMembers refuses a list of snapshots that is not the group's. None is no list.
func sameMembers(g pool.Group, given []string) error {
	if len(given) == 0 {
		return nil
	}
	var have []string
	for _, snap := range g.Snapshots {
		have = append(have, snap.ID)
	}
	if !slices.Equal(slices.Sorted(slices.Values(given)), slices.Sorted(slices.Values(have))) {
		return fmt.Errorf("%w: snapshot_ids are not those of group snapshot %s, which has %v", errInvalid, g.ID, have)
	}
	return nil
}
