package driver

import (
	"context"
	"fmt"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

type controller struct {
	csi.UnimplementedControllerServer
	Controller
	work   *inflight
	reads  reads
	health *healthView
}

// controllerCapabilities are the optional calls of controller (I-DRV-8).
var controllerCapabilities = []csi.ControllerServiceCapability_RPC_Type{
	csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
	csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME,
	csi.ControllerServiceCapability_RPC_PUBLISH_READONLY,
	csi.ControllerServiceCapability_RPC_LIST_VOLUMES,
	csi.ControllerServiceCapability_RPC_LIST_VOLUMES_PUBLISHED_NODES,
	csi.ControllerServiceCapability_RPC_GET_CAPACITY,
	csi.ControllerServiceCapability_RPC_GET_VOLUME,
	csi.ControllerServiceCapability_RPC_EXPAND_VOLUME,
	csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
	csi.ControllerServiceCapability_RPC_LIST_SNAPSHOTS,
	csi.ControllerServiceCapability_RPC_GET_SNAPSHOT,
	csi.ControllerServiceCapability_RPC_CLONE_VOLUME,
	csi.ControllerServiceCapability_RPC_MODIFY_VOLUME,
	csi.ControllerServiceCapability_RPC_GET_VOLUME_HEALTH,
	csi.ControllerServiceCapability_RPC_LIST_VOLUME_HEALTH,
}

func (s *controller) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	r := &csi.ControllerGetCapabilitiesResponse{}
	for _, t := range controllerCapabilities {
		r.Capabilities = append(r.Capabilities, &csi.ControllerServiceCapability{
			Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: t}}})
	}
	return r, nil
}

// pool finds a pool of this process by name, the default one for "".
func (s *controller) pool(name string) (Pool, error) {
	var names []string
	for i, p := range s.Pools {
		if p.Name == name || name == "" && i == 0 {
			return p, nil
		}
		names = append(names, p.Name)
	}
	return Pool{}, fmt.Errorf("%w: no pool is called %q; there are: %s", errInvalid, name, strings.Join(names, ", "))
}

// volume looks a volume up, waiting no longer than the caller.
func (s *controller) volume(ctx context.Context, id string) (pool.Volume, error) {
	return read(ctx, s.reads, func(ctx context.Context) (pool.Volume, error) { return s.Volumes.Volume(ctx, id) })
}

// describe is a volume as the container orchestrator sees it.
func (s *controller) describe(v pool.Volume) *csi.Volume {
	r := &csi.Volume{VolumeId: v.ID, CapacityBytes: v.Size}
	if p, err := s.pool(v.Pool); err == nil {
		r.AccessibleTopology = []*csi.Topology{topology(p)}
	}
	return r
}

func publishedNodes(v pool.Volume) []string {
	var ids []string
	for _, a := range v.Attachments {
		ids = append(ids, a.Node)
	}
	return ids
}
