package driver

import (
	"errors"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

// TestLimits: I-DRV-5.
func TestLimits(t *testing.T) {
	s := func(n int) string { return strings.Repeat("x", n) }
	for _, tt := range []struct {
		name string
		req  any
		ok   bool
	}{
		{"name at the limit", &csi.CreateVolumeRequest{Name: s(128)}, true},
		{"name too long", &csi.CreateVolumeRequest{Name: s(129)}, false},
		{"parameters at the limit", &csi.CreateVolumeRequest{Parameters: map[string]string{"k": s(4095)}}, true},
		{"parameters too long", &csi.CreateVolumeRequest{Parameters: map[string]string{"k": s(2048), "l": s(2047)}}, false},
		{"secrets too long", &csi.CreateVolumeRequest{Secrets: map[string]string{"k": s(4096)}}, false},
		{"path", &csi.NodePublishVolumeRequest{TargetPath: s(4095)}, true},
		{"path too long", &csi.NodePublishVolumeRequest{TargetPath: s(4096)}, false},
		{"staging path", &csi.NodeStageVolumeRequest{StagingTargetPath: s(1000)}, true},
		{"volume path", &csi.NodeGetVolumeStatsRequest{VolumePath: s(1000)}, true},
		{"node id", &csi.ControllerPublishVolumeRequest{NodeId: s(256)}, true},
		{"node id too long", &csi.ControllerPublishVolumeRequest{NodeId: s(257)}, false},
		{"mount flags", &csi.NodeStageVolumeRequest{VolumeCapability: mount(1, "ext4", s(2048), s(2048))}, true},
		{"mount flags too long", &csi.NodeStageVolumeRequest{VolumeCapability: mount(1, "ext4", s(2048), s(2049))}, false},
		{"nested string", &csi.CreateVolumeRequest{VolumeCapabilities: []*csi.VolumeCapability{mount(1, s(129))}}, false},
		{"nested map", &csi.CreateVolumeRequest{AccessibilityRequirements: &csi.TopologyRequirement{
			Requisite: []*csi.Topology{{Segments: map[string]string{"k": s(5000)}}}}}, false},
		{"token", &csi.ListVolumesRequest{StartingToken: s(129)}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := checkLimits(tt.req)
			if tt.ok != (err == nil) || err != nil && !errors.Is(err, errInvalid) {
				t.Fatalf("got %v", err)
			}
		})
	}
}

func TestVolumeName(t *testing.T) {
	for _, ok := range []string{"pvc-1", "a\tb\nc\r", "../..", "/", "名前", ".", s128} {
		if err := volumeName(ok); err != nil {
			t.Errorf("%q: %v", ok, err)
		}
	}
	for _, bad := range []string{"", "a\x00b", "a\x1fb", "\u007f", "a\u0085"} {
		if err := volumeName(bad); !errors.Is(err, errInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

var s128 = strings.Repeat("n", 128)

func TestAbsolute(t *testing.T) {
	for _, ok := range []string{"/a", "/var/lib/kubelet/pods/x/volumes/y"} {
		if err := absolute("p", ok); err != nil {
			t.Errorf("%q: %v", ok, err)
		}
	}
	for _, bad := range []string{"", "a", "./a", "/a/../b", "/a/", "//a", "/"} {
		if err := absolute("p", bad); !errors.Is(err, errInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
