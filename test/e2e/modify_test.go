package e2e

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// attributes makes a VolumeAttributesClass that ends with the test.
func (e *env) attributes(params map[string]string) string {
	e.Helper()
	c, err := client.StorageV1().VolumeAttributesClasses().Create(e.ctx, &storagev1.VolumeAttributesClass{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-"}, DriverName: driverName, Parameters: params,
	}, metav1.CreateOptions{})
	if err != nil {
		e.Fatal(err)
	}
	e.Cleanup(func() { _ = client.StorageV1().VolumeAttributesClasses().Delete(e.ctx, c.Name, metav1.DeleteOptions{}) })
	return c.Name
}

// modify gives a claim another VolumeAttributesClass.
func (e *env) modify(claim, class string) {
	e.Helper()
	patch := fmt.Appendf(nil, `{"spec":{"volumeAttributesClassName":%q}}`, class)
	if _, err := client.CoreV1().PersistentVolumeClaims(e.ns).Patch(e.ctx, claim, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		e.Fatal(err)
	}
}

// modified waits until a claim has its class, or that cannot be.
func (e *env) modified(claim string, done func(corev1.PersistentVolumeClaimStatus) bool) {
	e.Helper()
	e.await("change of the claim "+claim, func() error {
		c, err := client.CoreV1().PersistentVolumeClaims(e.ns).Get(e.ctx, claim, metav1.GetOptions{})
		if err == nil && !done(c.Status) {
			err = fmt.Errorf("status %+v", c.Status)
		}
		return err
	})
}

func has(class string) func(corev1.PersistentVolumeClaimStatus) bool {
	return func(s corev1.PersistentVolumeClaimStatus) bool {
		return s.CurrentVolumeAttributesClassName != nil && *s.CurrentVolumeAttributesClassName == class
	}
}

// TestVolumeAttributesClass: a claim with a limit keeps to it, is given a class
// without one while its pod writes, and refuses one that nothing is to be made of.
func TestVolumeAttributesClass(t *testing.T) {
	t.Parallel()
	e := start(t)
	const iops = 20
	slow, free := e.attributes(map[string]string{"iops": fmt.Sprint(iops)}), e.attributes(map[string]string{"iops": "0"})
	bad := e.attributes(map[string]string{"iops": "1", "bandwith": "1Mi"})
	spec := claimSpec(e.class(""), 96*mib, corev1.PersistentVolumeBlock, corev1.ReadWriteOnce)
	spec.VolumeAttributesClassName = &slow
	e.claimAs("data", spec)
	p := e.run(pod("data", "data", true, "ledger", 64*mib, 1))
	e.modified("data", has(slow))

	rate := func() float64 { // of synced writes; a record takes two
		began, before := time.Now(), e.status(p).Writes
		e.goesOn(p, e.status(p), 2*iops)
		return 2 * float64(e.status(p).Writes-before) / time.Since(began).Seconds()
	}
	limited := rate()
	e.Attr("writes-per-second-with-iops-20", fmt.Sprintf("%.1f", limited))
	if limited > 1.1*iops {
		t.Errorf("with a limit of %d requests a second there are %.1f", iops, limited)
	}

	e.modify("data", free)
	e.modified("data", has(free))
	e.await("writes beyond the limit that was", func() error {
		if got := rate(); got < 2*iops {
			return fmt.Errorf("%.1f a second", got)
		}
		return nil
	})

	e.modify("data", bad)
	t.Logf("event: %s", e.event("data", `"bandwith"`))
	e.modified("data", func(s corev1.PersistentVolumeClaimStatus) bool {
		return s.ModifyVolumeStatus != nil && s.ModifyVolumeStatus.Status == corev1.PersistentVolumeClaimModifyVolumeInfeasible && has(free)(s)
	})
	e.modify("data", slow)
	e.modified("data", has(slow))
	e.goesOn(p, e.status(p), 5)
}
