package driver

import (
	"context"
	"fmt"
	"strconv"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// readOnlyKey in the publish context tells the node that the volume is
// attached read-only, which no other field of its requests does.
const readOnlyKey = Name + "/readonly"

func attachedReadOnly(publishContext map[string]string) bool {
	return publishContext[readOnlyKey] == strconv.FormatBool(true)
}

func (s *controller) ControllerPublishVolume(ctx context.Context, r *csi.ControllerPublishVolumeRequest) (*csi.ControllerPublishVolumeResponse, error) {
	id, nodeID := r.GetVolumeId(), r.GetNodeId()
	if err := required("volume_id", id); err != nil {
		return nil, err
	}
	if err := required("node_id", nodeID); err != nil {
		return nil, err
	}
	a, err := parseAccess(r.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	readOnly := r.GetReadonly() || a.readOnly
	err = only(ctx, s.work, id, "ControllerPublishVolume", func(ctx context.Context) error {
		return s.Attachments.Attach(ctx, id, nodeID, readOnly)
	})
	if err != nil {
		return nil, err
	}
	return &csi.ControllerPublishVolumeResponse{
		PublishContext: map[string]string{readOnlyKey: strconv.FormatBool(readOnly)},
	}, nil
}

// ControllerUnpublishVolume is successful for a volume that is not there or
// not attached: the attacher would never let go of an error.
func (s *controller) ControllerUnpublishVolume(ctx context.Context, r *csi.ControllerUnpublishVolumeRequest) (*csi.ControllerUnpublishVolumeResponse, error) {
	id, nodeID := r.GetVolumeId(), r.GetNodeId()
	if err := required("volume_id", id); err != nil {
		return nil, err
	}
	err := only(ctx, s.work, id, "ControllerUnpublishVolume", func(ctx context.Context) error {
		return s.Attachments.Detach(ctx, id, nodeID)
	})
	if err != nil {
		return nil, err
	}
	return &csi.ControllerUnpublishVolumeResponse{}, nil
}

// ControllerExpandVolume records the size; the node lets image, device and
// filesystem follow.
func (s *controller) ControllerExpandVolume(ctx context.Context, r *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	id := r.GetVolumeId()
	if err := required("volume_id", id); err != nil {
		return nil, err
	}
	if r.GetCapacityRange() == nil {
		return nil, fmt.Errorf("%w: capacity_range is missing", errInvalid)
	}
	if c := r.GetVolumeCapability(); c != nil {
		if _, err := parseAccess(c); err != nil {
			return nil, err
		}
	}
	v, err := run(ctx, s.work, id, "ControllerExpandVolume", func(ctx context.Context) (pool.Volume, error) {
		return s.expand(ctx, id, r.GetCapacityRange())
	})
	if err != nil {
		return nil, err
	}
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: v.Size, NodeExpansionRequired: true}, nil
}

func (s *controller) expand(ctx context.Context, id string, want *csi.CapacityRange) (pool.Volume, error) {
	v, err := s.Volumes.Volume(ctx, id)
	if err != nil {
		return pool.Volume{}, err
	}
	size, err := parseRange(want, int64(max(v.Params.LogicalSectorSize, defaultSector)), 0)
	if err != nil {
		return pool.Volume{}, err
	}
	if size.limit > 0 && v.Size > size.limit {
		return pool.Volume{}, fmt.Errorf("%w: volume %s has %d bytes already, at most %d allowed, and volumes do not shrink", errRange, id, v.Size, size.limit)
	}
	if size.need <= v.Size {
		return s.Volumes.Resize(ctx, id, v.Size) // an earlier call may have been cut short after the record
	}
	return s.Volumes.Resize(ctx, id, size.need)
}
