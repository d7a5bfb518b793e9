package e2e

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestData: what a pod has written, the next pod of the claim reads.
func TestData(t *testing.T) {
	for _, tt := range []struct {
		name, fstype string
		size         int64
		mode         corev1.PersistentVolumeMode
	}{
		{"ext4", "ext4", 64 * mib, corev1.PersistentVolumeFilesystem},
		{"xfs", "xfs", 320 * mib, corev1.PersistentVolumeFilesystem},
		{"btrfs", "btrfs", 256 * mib, corev1.PersistentVolumeFilesystem},
		{"raw", "", 33 * mib, corev1.PersistentVolumeBlock},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			const written = 24 * mib
			e := start(t)
			block := tt.mode == corev1.PersistentVolumeBlock
			began := time.Now()
			e.claim("data", e.class(tt.fstype), tt.size, tt.mode)
			pv := e.bound("data")
			e.took("claim bound", began)
			first := e.run(pod("writer", "data", block, "fill", written, 7))
			if got := e.deviceSize(pv.Spec.CSI.VolumeHandle); got != tt.size {
				t.Errorf("the device has %d bytes, want %d", got, tt.size)
			}
			sum := e.status(first).Sum
			e.remove("writer")
			e.await("end of the device", func() error { return gone(pv) })
			second := e.run(pod("reader", "data", block, "check", written, 7))
			if got := e.status(second).Sum; got != sum || sum == "" {
				t.Errorf("the second pod reads %q, the first wrote %q", got, sum)
			}
		})
	}
}
