package e2e

import (
	"encoding/json"
	"fmt"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// grow asks for another size of a claim.
func (e *env) grow(claim string, size int64) {
	e.Helper()
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"resources": map[string]any{"requests": map[string]any{"storage": strconv.FormatInt(size, 10)}}}})
	if err != nil {
		e.Fatal(err)
	}
	if _, err := client.CoreV1().PersistentVolumeClaims(e.ns).Patch(e.ctx, claim, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		e.Fatal(err)
	}
}

// grown waits until Kubernetes says that the claim has exactly this size.
func (e *env) grown(claim string, size int64) {
	e.Helper()
	e.await("growth of the claim", func() error {
		c, err := client.CoreV1().PersistentVolumeClaims(e.ns).Get(e.ctx, claim, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if got := c.Status.Capacity[corev1.ResourceStorage]; got.Value() != size {
			return fmt.Errorf("capacity %d, want %d; conditions %+v", got.Value(), size, c.Status.Conditions)
		}
		return nil
	})
}

// TestExpand: a claim grows to a size that is no multiple of any block. The
// device has exactly that size, the filesystem follows, the data stays.
func TestExpand(t *testing.T) {
	for _, tt := range []struct {
		name, fstype string
		from, to     int64
		offline      bool // the filesystem needs a new pod
	}{
		{"xfs", "xfs", 320 * mib, 701*mib + 4096*3, false},
		{"btrfs", "btrfs", 320 * mib, 701*mib + 4096*3, false},
		// Online it wants CAP_SYS_RESOURCE, which not every machine that runs
		// this has; see docs/explanation/node.md.
		{"ext4", "ext4", 64 * mib, 131*mib + 4096*3, true},
		{"raw", "", 33 * mib, 67*mib + 4096, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e := start(t)
			mode, block := corev1.PersistentVolumeFilesystem, tt.fstype == ""
			if block {
				mode = corev1.PersistentVolumeBlock
			}
			e.claim("data", e.class(tt.fstype), tt.from, mode)
			pv := e.bound("data")
			p := e.run(pod("writer", "data", block, "fill", 16*mib, 3))
			before := e.status(p)
			began := time.Now()
			e.grow("data", tt.to)
			if tt.offline {
				e.await("growth of the image", func() error { return imageGrown(e, pv.Name, tt.to) })
				e.remove("writer")
				p = e.run(pod("next", "data", block, "check", 16*mib, 3))
			}
			e.grown("data", tt.to)
			e.took("grown", began)
			if got := e.deviceSize(pv.Spec.CSI.VolumeHandle); got != tt.to {
				t.Errorf("the device has %d bytes, want %d", got, tt.to)
			}
			after := e.status(p)
			if after.Size <= before.Size || after.Size > tt.to || block && after.Size != tt.to {
				t.Errorf("the pod sees %d bytes, before %d, the device has %d", after.Size, before.Size, tt.to)
			}
			if after.Sum != before.Sum {
				t.Errorf("content %s, before %s", after.Sum, before.Sum)
			}
			e.remove(p.Name)
			if got := e.status(e.run(pod("last", "data", block, "check", 16*mib, 3))).Sum; got != before.Sum {
				t.Errorf("content %s in a new pod, before %s", got, before.Sum)
			}
		})
	}
}

// imageGrown: the controller has recorded the size.
func imageGrown(e *env, pv string, size int64) error {
	v, err := client.CoreV1().PersistentVolumes().Get(e.ctx, pv, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if got := v.Spec.Capacity[corev1.ResourceStorage]; got.Value() != size {
		return fmt.Errorf("the volume has %d bytes, want %d", got.Value(), size)
	}
	return nil
}
