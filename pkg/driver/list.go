package driver

import (
	"cmp"
	"context"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// maxEntries bounds a page, so that it fits a message however long the ids are.
const maxEntries = 1000

func (s *controller) ListVolumes(ctx context.Context, r *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	n := int(r.GetMaxEntries())
	if n < 0 {
		return nil, fmt.Errorf("%w: max_entries is negative", errInvalid)
	}
	if n == 0 || n > maxEntries {
		n = maxEntries
	}
	type page struct {
		volumes []pool.Volume
		next    string
	}
	list, err := read(ctx, s.reads, func(ctx context.Context) (p page, err error) {
		p.volumes, p.next, err = s.Volumes.List(ctx, r.GetStartingToken(), n)
		return p, err
	})
	if err != nil {
		return nil, err
	}
	resp := &csi.ListVolumesResponse{NextToken: list.next}
	for _, v := range list.volumes {
		resp.Entries = append(resp.Entries, &csi.ListVolumesResponse_Entry{
			Volume: s.describe(v),
			Status: &csi.ListVolumesResponse_VolumeStatus{PublishedNodeIds: publishedNodes(v)},
		})
	}
	return resp, nil
}

func (s *controller) ControllerGetVolume(ctx context.Context, r *csi.ControllerGetVolumeRequest) (*csi.ControllerGetVolumeResponse, error) {
	if err := required("volume_id", r.GetVolumeId()); err != nil {
		return nil, err
	}
	v, err := s.volume(ctx, r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	return &csi.ControllerGetVolumeResponse{
		Volume: s.describe(v),
		Status: &csi.ControllerGetVolumeResponse_VolumeStatus{PublishedNodeIds: publishedNodes(v)},
	}, nil
}

// GetCapacity answers what one more volume of this class may have: what the
// pool's policy leaves, for a fixed volume also what is really free. A place that
// does not reach the pool has no room in it.
//
// A class that cannot work gets all the room there could be: what is wrong is for
// CreateVolume to say, whose words the claim shows. With an error here, or with
// no room, the scheduler would keep the claim from ever coming there, and call the
// pool full.
func (s *controller) GetCapacity(ctx context.Context, r *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	c, err := parseClass(r.GetParameters())
	if err != nil {
		return unbounded(), nil //nolint:nilerr // see above
	}
	p, err := s.pool(c.pool)
	if err != nil {
		return unbounded(), nil //nolint:nilerr // see above
	}
	if !reaches(r.GetAccessibleTopology(), p) {
		return &csi.GetCapacityResponse{}, nil
	}
	mounts, fsType := false, ""
	if caps := r.GetVolumeCapabilities(); len(caps) > 0 {
		if fsType, mounts, err = parseAccesses(caps); err != nil {
			return &csi.GetCapacityResponse{}, nil // no volume of this kind has any room
		}
	}
	room, err := read(ctx, s.reads, p.Capacity)
	if err != nil {
		return nil, err
	}
	free := room.Available
	if c.params.Fixed {
		free = room.AvailableFixed
	}
	free = max(free, 0)
	resp := &csi.GetCapacityResponse{
		AvailableCapacity: free,
		MaximumVolumeSize: wrapperspb.Int64(min(free, room.Maximum)),
	}
	if least := leastSize(mounts, cmp.Or(c.params.FSType, fsType, defaultFS)); least > 0 {
		resp.MinimumVolumeSize = wrapperspb.Int64(least)
	}
	return resp, nil
}

func unbounded() *csi.GetCapacityResponse {
	return &csi.GetCapacityResponse{AvailableCapacity: maxVolume, MaximumVolumeSize: wrapperspb.Int64(maxVolume)}
}
