package plugin

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Volume is a volume and where this node has it. Its methods make the calls
// that a cluster would make, and repeat one that is answered Aborted, as the
// sidecars and kubelet do.
type Volume struct {
	p   *Process
	ID  string
	Cap *csi.VolumeCapability
	// Staging and Target are the paths the calls are made with.
	Staging, Target string
	// AttachReadOnly and ReadOnly are the flags of ControllerPublishVolume and
	// NodePublishVolume.
	AttachReadOnly, ReadOnly bool

	publishContext map[string]string
}

// Filesystem is the capability of a volume with a filesystem.
func Filesystem(fsType string, flags ...string) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER},
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fsType, MountFlags: flags}},
	}
}

// Raw is the capability of a raw block volume.
func Raw() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER},
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
	}
}

// Create makes a volume of exactly this size.
func (p *Process) Create(ctx context.Context, name string, size int64, c *csi.VolumeCapability, params map[string]string) (*Volume, error) {
	var id string
	err := retry(ctx, func() error {
		r, err := p.Controller().CreateVolume(ctx, &csi.CreateVolumeRequest{
			Name: name, VolumeCapabilities: []*csi.VolumeCapability{c}, Parameters: params,
			CapacityRange: &csi.CapacityRange{RequiredBytes: size, LimitBytes: size},
		})
		if err == nil && r.GetVolume().GetCapacityBytes() != size {
			return fmt.Errorf("asked for %d bytes, got %d", size, r.GetVolume().GetCapacityBytes())
		}
		id = r.GetVolume().GetVolumeId()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("create volume %s: %w", name, err)
	}
	base := filepath.Join(p.Dir, "kubelet", name)
	return &Volume{p: p, ID: id, Cap: c, Staging: filepath.Join(base, "globalmount"), Target: filepath.Join(base, "mount")}, nil
}

// On is the same volume, reached through another plugin process.
func (v *Volume) On(p *Process) *Volume {
	w := *v
	w.p = p
	return &w
}

// Attach lets the node have the volume (ControllerPublishVolume).
func (v *Volume) Attach(ctx context.Context) error {
	return v.do(ctx, "attach", func() error {
		r, err := v.p.Controller().ControllerPublishVolume(ctx, &csi.ControllerPublishVolumeRequest{
			VolumeId: v.ID, NodeId: v.p.node, VolumeCapability: v.Cap, Readonly: v.AttachReadOnly})
		v.publishContext = r.GetPublishContext()
		return err
	})
}

// Stage makes it a device of the node and mounts it.
func (v *Volume) Stage(ctx context.Context) error {
	if err := os.MkdirAll(v.Staging, 0o700); err != nil { // the orchestrator's part
		return fmt.Errorf("make the staging directory: %w", err)
	}
	return v.do(ctx, "stage", func() error {
		_, err := v.p.Node().NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
			VolumeId: v.ID, StagingTargetPath: v.Staging, VolumeCapability: v.Cap, PublishContext: v.publishContext})
		return err
	})
}

// Publish makes it appear at Target.
func (v *Volume) Publish(ctx context.Context) error {
	return v.do(ctx, "publish", func() error {
		_, err := v.p.Node().NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
			VolumeId: v.ID, StagingTargetPath: v.Staging, TargetPath: v.Target, VolumeCapability: v.Cap,
			PublishContext: v.publishContext, Readonly: v.ReadOnly})
		return err
	})
}

// Up attaches, stages and publishes.
func (v *Volume) Up(ctx context.Context) error {
	for _, step := range []func(context.Context) error{v.Attach, v.Stage, v.Publish} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Unpublish undoes Publish.
func (v *Volume) Unpublish(ctx context.Context) error {
	return v.do(ctx, "unpublish", func() error {
		_, err := v.p.Node().NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: v.ID, TargetPath: v.Target})
		return err
	})
}

// Unstage undoes Stage.
func (v *Volume) Unstage(ctx context.Context) error {
	return v.do(ctx, "unstage", func() error {
		_, err := v.p.Node().NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: v.ID, StagingTargetPath: v.Staging})
		return err
	})
}

// Detach undoes Attach.
func (v *Volume) Detach(ctx context.Context) error {
	return v.do(ctx, "detach", func() error {
		_, err := v.p.Controller().ControllerUnpublishVolume(ctx, &csi.ControllerUnpublishVolumeRequest{VolumeId: v.ID, NodeId: v.p.node})
		return err
	})
}

// Down undoes Up.
func (v *Volume) Down(ctx context.Context) error {
	for _, step := range []func(context.Context) error{v.Unpublish, v.Unstage, v.Detach} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Delete removes the volume.
func (v *Volume) Delete(ctx context.Context) error {
	return v.do(ctx, "delete", func() error {
		_, err := v.p.Controller().DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: v.ID})
		return err
	})
}

// Expand grows the volume and lets the node follow, where it is published.
func (v *Volume) Expand(ctx context.Context, size int64) error {
	grow := &csi.CapacityRange{RequiredBytes: size}
	err := v.do(ctx, "expand", func() error {
		r, err := v.p.Controller().ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{
			VolumeId: v.ID, CapacityRange: grow, VolumeCapability: v.Cap})
		if err == nil && r.GetCapacityBytes() != size {
			return fmt.Errorf("asked for %d bytes, got %d", size, r.GetCapacityBytes())
		}
		return err
	})
	if err != nil {
		return err
	}
	return v.do(ctx, "expand on the node", func() error {
		_, err := v.p.Node().NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{
			VolumeId: v.ID, VolumePath: v.Target, StagingTargetPath: v.Staging, CapacityRange: grow, VolumeCapability: v.Cap})
		return err
	})
}

// GrowsExt4Online reports whether this process, and so a plugin that it starts,
// may grow a mounted ext4: the kernel wants CAP_SYS_RESOURCE for that, which
// many containers lack. Elsewhere the filesystem grows at the next stage.
func GrowsExt4Online() bool {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	err := unix.Capget(&head, &data[0])
	return err == nil && data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// Stats are the volume's bytes as the plugin counts them.
func (v *Volume) Stats(ctx context.Context) (*csi.VolumeUsage, error) {
	r, err := v.p.Node().NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: v.ID, VolumePath: v.Target, StagingTargetPath: v.Staging})
	if err != nil {
		return nil, fmt.Errorf("statistics of volume %s: %w", v.ID, err)
	}
	for _, u := range r.GetUsage() {
		if u.GetUnit() == csi.VolumeUsage_BYTES {
			return u, nil
		}
	}
	return nil, fmt.Errorf("statistics of volume %s: no bytes in %v", v.ID, r)
}

func (v *Volume) do(ctx context.Context, what string, call func() error) error {
	if err := retry(ctx, call); err != nil {
		return fmt.Errorf("%s volume %s: %w", what, v.ID, err)
	}
	return nil
}

func retry(ctx context.Context, call func() error) error {
	for {
		err := call()
		if status.Code(err) != codes.Aborted {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Images lists the VHDX files in the pool of dir.
func Images(dir string) ([]string, error) {
	var found []string
	err := filepath.WalkDir(PoolDir(dir), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && filepath.Ext(path) == ".vhdx" {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("look for images: %w", err)
	}
	return found, nil
}

// Image is the one VHDX file in the pool of dir.
func Image(dir string) (string, error) {
	found, err := Images(dir)
	if err != nil {
		return "", err
	}
	if len(found) != 1 {
		return "", fmt.Errorf("%d images in the pool, want 1: %q", len(found), found)
	}
	return found[0], nil
}
