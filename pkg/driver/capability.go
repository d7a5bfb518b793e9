package driver

import (
	"fmt"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

// defaultFS is made when neither the class nor the claim names a filesystem.
const defaultFS = "ext4"

// smallest holds the filesystems and the smallest volume that mkfs makes one in.
var smallest = map[string]int64{
	"btrfs": 128 << 20,
	"ext4":  8 << 20,
	"xfs":   300 << 20,
}

func filesystems() []string {
	names := make([]string, 0, len(smallest))
	for n := range smallest {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

func knownFS(name string) bool { return smallest[name] != 0 }

// access is a volume capability in our words.
type access struct {
	block        bool
	fsType       string // "": not said
	mountFlags   []string
	readOnly     bool
	singleWriter bool // at most one target path
}

// modes holds the access modes there are. One VHDX file has one writer, so
// nothing that lets two nodes write can ever be served; reading on many nodes
// needs a frozen image, which there is not yet.
var modes = map[csi.VolumeCapability_AccessMode_Mode]access{
	csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER:        {singleWriter: true},
	csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER: {singleWriter: true},
	csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER:  {},
	csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY:   {readOnly: true},
}

// parseAccess checks one capability.
func parseAccess(c *csi.VolumeCapability) (access, error) {
	if c == nil {
		return access{}, fmt.Errorf("%w: volume_capability is missing", errInvalid)
	}
	mode := c.GetAccessMode().GetMode()
	a, ok := modes[mode]
	if !ok {
		return access{}, fmt.Errorf("%w: access mode %s is not supported; a volume is written by one node only: use ReadWriteOnce or ReadWriteOncePod", errInvalid, mode)
	}
	switch t := c.GetAccessType().(type) {
	case *csi.VolumeCapability_Block:
		a.block = true
	case *csi.VolumeCapability_Mount:
		a.fsType = t.Mount.GetFsType()
		a.mountFlags = t.Mount.GetMountFlags()
		if a.fsType != "" && !knownFS(a.fsType) {
			return access{}, fmt.Errorf("%w: filesystem %q is not supported; valid: %s", errInvalid, a.fsType, strings.Join(filesystems(), ", "))
		}
		if t.Mount.GetVolumeMountGroup() != "" {
			return access{}, fmt.Errorf("%w: volume_mount_group is not supported (VOLUME_MOUNT_GROUP is not advertised)", errInvalid)
		}
	default:
		return access{}, fmt.Errorf("%w: the capability is neither block nor mount", errInvalid)
	}
	return a, nil
}

// parseAccesses checks all capabilities of a volume and returns the filesystem
// they name ("" if none does) and whether any of them mounts one.
func parseAccesses(cs []*csi.VolumeCapability) (fsType string, mounts bool, err error) {
	if len(cs) == 0 {
		return "", false, fmt.Errorf("%w: volume_capabilities are missing", errInvalid)
	}
	for _, c := range cs {
		a, err := parseAccess(c)
		if err != nil {
			return "", false, err
		}
		mounts = mounts || !a.block
		if a.fsType == "" {
			continue
		}
		if fsType != "" && fsType != a.fsType {
			return "", false, fmt.Errorf("%w: the capabilities name two filesystems, %s and %s", errInvalid, fsType, a.fsType)
		}
		fsType = a.fsType
	}
	return fsType, mounts, nil
}
