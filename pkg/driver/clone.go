package driver

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// source is what a new volume is made of.
type source struct {
	snapshot, volume string // one of them, or none
}

func parseSource(c *csi.VolumeContentSource) (source, error) {
	switch t := c.GetType().(type) {
	case nil:
		if c != nil {
			return source{}, fmt.Errorf("%w: volume_content_source is neither a snapshot nor a volume", errInvalid)
		}
		return source{}, nil
	case *csi.VolumeContentSource_Snapshot:
		return source{snapshot: t.Snapshot.GetSnapshotId()}, required("snapshot_id", t.Snapshot.GetSnapshotId())
	case *csi.VolumeContentSource_Volume:
		return source{volume: t.Volume.GetVolumeId()}, required("volume_id", t.Volume.GetVolumeId())
	}
	return source{}, fmt.Errorf("%w: volume_content_source is of an unknown kind", errInvalid)
}

// create makes a volume of what its source is.
func (s *controller) create(ctx context.Context, spec pool.Spec, from source) (pool.Volume, error) {
	if from.volume != "" {
		return s.clone(ctx, spec, from.volume)
	}
	spec.Source.Snapshot = cmp.Or(from.snapshot, spec.Source.Snapshot)
	return s.Volumes.CreateVolume(ctx, spec)
}

// clone makes a volume of another one as it is now: of a snapshot that is taken
// for this, and goes again.
func (s *controller) clone(ctx context.Context, spec pool.Spec, of string) (pool.Volume, error) {
	spec.Source.Of = "volume " + of
	if there, err := s.Snapshots.Find(ctx, spec.Pool, spec.Name); err == nil {
		if spec.Size == 0 {
			spec.Size = there.Size
		}
		return s.Volumes.CreateVolume(ctx, spec)
	} else if !errors.Is(err, pool.ErrNotFound) {
		return pool.Volume{}, err
	}
	sum := sha256.Sum256([]byte(spec.Pool + "/" + spec.Name))
	snap, err := s.takeSnapshot(ctx, pool.SnapshotSpec{Name: "clone-" + hex.EncodeToString(sum[:16]), Volume: of, Passing: true}, false)
	if err != nil {
		return pool.Volume{}, fmt.Errorf("clone volume %s: %w", of, err)
	}
	spec.Source.Snapshot = snap.ID
	v, err := s.Volumes.CreateVolume(ctx, spec)
	if errors.Is(err, pool.ErrBusy) {
		return v, err // it comes again, and finds the snapshot
	}
	// One that stays is deleted later.
	return v, errors.Join(err, s.deleteSnapshot(ctx, snap.ID, of))
}
