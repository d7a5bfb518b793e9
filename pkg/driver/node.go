package driver

import (
	"context"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/node"
)

type nodeServer struct {
	csi.UnimplementedNodeServer
	NodeService
	work   *inflight
	health *healthView
}

// nodeCapabilities are the optional calls of nodeServer (I-DRV-8).
var nodeCapabilities = []csi.NodeServiceCapability_RPC_Type{
	csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
	csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
	csi.NodeServiceCapability_RPC_EXPAND_VOLUME,
	csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	csi.NodeServiceCapability_RPC_GET_VOLUME_HEALTH,
	csi.NodeServiceCapability_RPC_GET_STORAGE_HEALTH,
}

func (s *nodeServer) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	r := &csi.NodeGetCapabilitiesResponse{}
	for _, t := range nodeCapabilities {
		r.Capabilities = append(r.Capabilities, &csi.NodeServiceCapability{
			Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: t}}})
	}
	return r, nil
}

func (s *nodeServer) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: s.ID, MaxVolumesPerNode: s.MaxVolumes, AccessibleTopology: topology(s.Pools...)}, nil
}

func (s *nodeServer) NodeStageVolume(ctx context.Context, r *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	if err := required("volume_id", r.GetVolumeId()); err != nil {
		return nil, err
	}
	if err := absolute("staging_target_path", r.GetStagingTargetPath()); err != nil {
		return nil, err
	}
	a, err := parseAccess(r.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	err = only(ctx, s.work, r.GetVolumeId(), "NodeStageVolume", func(ctx context.Context) error {
		return s.Mounts.Stage(ctx, node.StageRequest{
			VolumeID:    r.GetVolumeId(),
			StagingPath: r.GetStagingTargetPath(),
			Block:       a.block,
			FSType:      a.fsType,
			MountFlags:  a.mountFlags,
			ReadOnly:    a.readOnly || attachedReadOnly(r.GetPublishContext()),
		})
	})
	if err != nil {
		return nil, err
	}
	return &csi.NodeStageVolumeResponse{}, nil
}

func (s *nodeServer) NodeUnstageVolume(ctx context.Context, r *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	if err := required("volume_id", r.GetVolumeId()); err != nil {
		return nil, err
	}
	if err := absolute("staging_target_path", r.GetStagingTargetPath()); err != nil {
		return nil, err
	}
	err := only(ctx, s.work, r.GetVolumeId(), "NodeUnstageVolume", func(ctx context.Context) error {
		return s.Mounts.Unstage(ctx, r.GetVolumeId(), r.GetStagingTargetPath())
	})
	if err != nil {
		return nil, err
	}
	return &csi.NodeUnstageVolumeResponse{}, nil
}

func (s *nodeServer) NodePublishVolume(ctx context.Context, r *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	a, err := checkPublish(r)
	if err != nil {
		return nil, err
	}
	err = only(ctx, s.work, r.GetVolumeId(), "NodePublishVolume", func(ctx context.Context) error {
		return s.Mounts.Publish(ctx, node.PublishRequest{
			VolumeID:     r.GetVolumeId(),
			StagingPath:  r.GetStagingTargetPath(),
			TargetPath:   r.GetTargetPath(),
			Block:        a.block,
			ReadOnly:     a.readOnly || r.GetReadonly() || attachedReadOnly(r.GetPublishContext()),
			FSType:       a.fsType,
			MountFlags:   a.mountFlags,
			SingleWriter: a.singleWriter,
		})
	})
	if err != nil {
		return nil, err
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

func checkPublish(r *csi.NodePublishVolumeRequest) (access, error) {
	if err := required("volume_id", r.GetVolumeId()); err != nil {
		return access{}, err
	}
	if err := absolute("target_path", r.GetTargetPath()); err != nil {
		return access{}, err
	}
	a, err := parseAccess(r.GetVolumeCapability())
	if err != nil {
		return access{}, err
	}
	if r.GetStagingTargetPath() == "" {
		return access{}, fmt.Errorf("volume %s: %w", r.GetVolumeId(), errStagingPath)
	}
	return a, absolute("staging_target_path", r.GetStagingTargetPath())
}

func (s *nodeServer) NodeUnpublishVolume(ctx context.Context, r *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if err := required("volume_id", r.GetVolumeId()); err != nil {
		return nil, err
	}
	if err := absolute("target_path", r.GetTargetPath()); err != nil {
		return nil, err
	}
	err := only(ctx, s.work, r.GetVolumeId(), "NodeUnpublishVolume", func(ctx context.Context) error {
		return s.Mounts.Unpublish(ctx, r.GetVolumeId(), r.GetTargetPath())
	})
	if err != nil {
		return nil, err
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

// NodeGetVolumeStats is polled, changes nothing and runs beside everything
// else; the node manager bounds it.
func (s *nodeServer) NodeGetVolumeStats(ctx context.Context, r *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	if err := required("volume_id", r.GetVolumeId()); err != nil {
		return nil, err
	}
	if err := required("volume_path", r.GetVolumePath()); err != nil {
		return nil, err
	}
	st, err := s.Usage.Stats(ctx, r.GetVolumeId(), r.GetVolumePath())
	if err != nil {
		return nil, err
	}
	resp := &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{usage(csi.VolumeUsage_BYTES, st.Bytes)}}
	if !st.Block {
		resp.Usage = append(resp.Usage, usage(csi.VolumeUsage_INODES, st.Inodes))
	}
	return resp, nil
}

func usage(unit csi.VolumeUsage_Unit, u node.Usage) *csi.VolumeUsage {
	return &csi.VolumeUsage{Unit: unit, Total: u.Total, Used: u.Used, Available: u.Available}
}

// NodeExpandVolume lets image, device and filesystem follow the recorded size.
// It never grows a volume by itself.
func (s *nodeServer) NodeExpandVolume(ctx context.Context, r *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	if err := required("volume_id", r.GetVolumeId()); err != nil {
		return nil, err
	}
	if err := required("volume_path", r.GetVolumePath()); err != nil {
		return nil, err
	}
	if c := r.GetVolumeCapability(); c != nil {
		if _, err := parseAccess(c); err != nil {
			return nil, err
		}
	}
	want, err := parseRange(r.GetCapacityRange(), defaultSector, 0)
	if err != nil {
		return nil, err
	}
	size, err := run(ctx, s.work, r.GetVolumeId(), "NodeExpandVolume", func(ctx context.Context) (int64, error) {
		return s.Usage.Expand(ctx, r.GetVolumeId(), r.GetVolumePath())
	})
	if err != nil {
		return nil, err
	}
	if size < want.need || want.limit > 0 && size > want.limit {
		return nil, fmt.Errorf("%w: the volume has %d bytes now, at least %d and at most %d (0: any) asked for; the controller decides the size",
			errRange, size, want.need, want.limit)
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: size}, nil
}
