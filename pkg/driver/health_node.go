package driver

import (
	"context"
	"errors"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// NodeGetVolumeHealth is asked about volumes that are here, that could not be
// staged here, and that are here no more. The pool is asked about the last only.
func (s *nodeServer) NodeGetVolumeHealth(ctx context.Context, r *csi.NodeGetVolumeHealthRequest) (*csi.NodeGetVolumeHealthResponse, error) {
	id := r.GetVolumeId()
	if err := required("volume_id", id); err != nil {
		return nil, err
	}
	for name, path := range map[string]string{"volume_publish_path": r.GetVolumePublishPath(), "staging_target_path": r.GetStagingTargetPath()} {
		if path == "" {
			continue
		}
		if err := absolute(name, path); err != nil {
			return nil, err
		}
	}
	all, err := s.health.here(ctx, id)
	if err != nil {
		return nil, err
	}
	return &csi.NodeGetVolumeHealthResponse{VolumeHealth: volumeHealth(id, all)}, nil
}

// here is what is wrong with a volume as this node sees it.
func (h *healthView) here(ctx context.Context, id string) ([]control.Entry, error) {
	rep, err := h.Here.Report(ctx, id)
	if errors.Is(err, control.ErrNotHeld) {
		l, err := h.look(ctx, id)
		return entries(l.Err), err
	}
	if err != nil {
		return nil, err
	}
	// Its requests wait for the share, whatever else is wrong.
	_, away, err := h.awayOf(id)
	if err != nil {
		return rep.Entries, nil //nolint:nilerr // it is here, whatever the pools say
	}
	return append(rep.Entries, entries(away)...), nil
}

// storageTypes are the troubles of pools as CSI has them.
var storageTypes = map[pool.Trouble]csi.StorageHealthErrorType{
	pool.TroubleAway: csi.StorageHealthErrorType_STORAGE_UNREACHABLE,
	pool.TroubleNear: csi.StorageHealthErrorType_STORAGE_DEGRADED,
	pool.TroubleFull: csi.StorageHealthErrorType_STORAGE_DEGRADED,
}

// NodeGetStorageHealth answers from memory. Several pools in one trouble are one
// entry, as the specification wants it.
func (s *nodeServer) NodeGetStorageHealth(context.Context, *csi.NodeGetStorageHealthRequest) (*csi.NodeGetStorageHealthResponse, error) {
	r := &csi.NodeGetStorageHealthResponse{}
	at := map[pool.Trouble]*csi.NodeGetStorageHealthResponse_StorageBackendHealth{}
	for _, f := range s.health.Figures() {
		t, why := f.Trouble()
		if t == pool.NoTrouble {
			continue
		}
		if at[t] == nil {
			at[t] = &csi.NodeGetStorageHealthResponse_StorageBackendHealth{Status: storageTypes[t], Reason: string(t)}
			r.BackendHealth = append(r.BackendHealth, at[t])
		} else {
			at[t].Message += "\n"
		}
		at[t].Message += reason(why)
	}
	return r, nil
}
