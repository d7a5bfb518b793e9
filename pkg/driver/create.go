package driver

import (
	"cmp"
	"context"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/node"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

func (s *controller) CreateVolume(ctx context.Context, r *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	spec, err := s.parseCreate(r)
	if err != nil {
		return nil, err
	}
	from, err := parseSource(r.GetVolumeContentSource())
	if err != nil {
		return nil, err
	}
	v, err := run(ctx, s.work, "name "+spec.Name, "CreateVolume", func(ctx context.Context) (pool.Volume, error) {
		return s.create(ctx, spec, from)
	})
	if err != nil {
		return nil, err
	}
	vol := s.describe(v)
	vol.ContentSource = r.GetVolumeContentSource()
	return &csi.CreateVolumeResponse{Volume: vol}, nil
}

// parseCreate checks the whole request before anything is done.
func (s *controller) parseCreate(r *csi.CreateVolumeRequest) (pool.Spec, error) {
	if err := volumeName(r.GetName()); err != nil {
		return pool.Spec{}, err
	}
	c, mounts, err := parsePurpose(r.GetVolumeCapabilities(), r.GetParameters())
	if err != nil {
		return pool.Spec{}, err
	}
	change, err := parseMutable(r.GetMutableParameters())
	if err != nil {
		return pool.Spec{}, err
	}
	p, err := s.pool(c.pool)
	if err != nil {
		return pool.Spec{}, err
	}
	if err := reachable(p, r.GetAccessibilityRequirements()); err != nil {
		return pool.Spec{}, err
	}
	sector := int64(cmp.Or(c.params.LogicalSectorSize, defaultSector))
	least := leastSize(mounts, cmp.Or(c.params.FSType, defaultFS))
	if r.GetVolumeContentSource() != nil || c.template != "" {
		least = 0 // it is at least as large as its source
	}
	size, err := parseRange(r.GetCapacityRange(), sector, least)
	if err != nil {
		return pool.Spec{}, err
	}
	spec := pool.Spec{
		Name: r.GetName(), Size: size.need, Limit: size.limit, Pool: p.Name, Params: c.params, Source: pool.Source{Mode: c.cloneMode},
	}
	if r.GetVolumeContentSource() == nil {
		spec.Source.Snapshot = c.template
	}
	spec.Limits, spec.OnFull = change.Apply(pool.Limits{}, pool.OnFullDefault)
	return spec, nil
}

// defaultSector is the logical sector size of a volume whose class names none.
const defaultSector = 512

// parsePurpose reads the class and the capabilities of a volume and joins what
// they say about its filesystem.
func parsePurpose(caps []*csi.VolumeCapability, params map[string]string) (c class, mounts bool, err error) {
	fsType, mounts, err := parseAccesses(caps)
	if err != nil {
		return class{}, false, err
	}
	c, err = parseClass(params)
	if err != nil {
		return class{}, false, err
	}
	if fsType != "" && c.params.FSType != "" && fsType != c.params.FSType {
		return class{}, false, fmt.Errorf("%w: the parameter fsType says %s, the volume capability %s (the provisioner's --default-fstype or csi.storage.k8s.io/fstype); let them agree or drop one",
			errInvalid, c.params.FSType, fsType)
	}
	if mounts {
		c.params.FSType = cmp.Or(c.params.FSType, fsType)
	}
	if err := node.CheckMkfsOptions(cmp.Or(c.params.FSType, defaultFS), c.params.MkfsOptions); err != nil {
		return class{}, false, fmt.Errorf("%w: parameter mkfsOptions=%q: %w", errInvalid, c.params.MkfsOptions, err)
	}
	return c, mounts, nil
}

func (s *controller) DeleteVolume(ctx context.Context, r *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	id := r.GetVolumeId()
	if err := required("volume_id", id); err != nil {
		return nil, err
	}
	err := only(ctx, s.work, id, "DeleteVolume", func(ctx context.Context) error {
		v, known := s.Volumes.Volume(ctx, id)
		if err := s.Volumes.DeleteVolume(ctx, id); err != nil {
			return err
		}
		if known == nil && s.Untended != nil && v.Origin != "" {
			s.Untended(v.Origin) // which may have been kept for this one alone
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &csi.DeleteVolumeResponse{}, nil
}

func (s *controller) ValidateVolumeCapabilities(ctx context.Context, r *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if err := required("volume_id", r.GetVolumeId()); err != nil {
		return nil, err
	}
	if len(r.GetVolumeCapabilities()) == 0 {
		return nil, fmt.Errorf("%w: volume_capabilities are missing", errInvalid)
	}
	v, err := s.volume(ctx, r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if err := fits(v, r); err != nil {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: scrub(err.Error())}, nil
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext:      r.GetVolumeContext(),
		VolumeCapabilities: r.GetVolumeCapabilities(),
		Parameters:         r.GetParameters(),
		MutableParameters:  r.GetMutableParameters(),
	}}, nil
}

// fits says why a volume does not have the capabilities and parameters asked for.
func fits(v pool.Volume, r *csi.ValidateVolumeCapabilitiesRequest) error {
	c, mounts, err := parsePurpose(r.GetVolumeCapabilities(), r.GetParameters())
	if err != nil {
		return err
	}
	change, err := parseMutable(r.GetMutableParameters())
	if err != nil {
		return err
	}
	if l, o := change.Apply(v.Limits, v.OnFull); l != v.Limits || o != v.OnFull {
		return fmt.Errorf("the volume's limits are %+v, and on a full share it does %q", v.Limits, v.OnFull)
	}
	if c.pool != "" && c.pool != v.Pool {
		return fmt.Errorf("the volume is in pool %s, not %s", v.Pool, c.pool)
	}
	has := cmp.Or(v.FSType, v.Params.FSType)
	if mounts && has != "" && c.params.FSType != "" && c.params.FSType != has {
		return fmt.Errorf("the volume's filesystem is %s, not %s", has, c.params.FSType)
	}
	if len(r.GetParameters()) > 0 && c.params.Fixed != v.Params.Fixed {
		return fmt.Errorf("the volume's subformat is another")
	}
	return nil
}
