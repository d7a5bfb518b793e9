package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestPodDeletedWhileDriverIsDown: a pod is deleted by force while there is no
// node plugin. When there is one again its volume is unmounted.
func TestPodDeletedWhileDriverIsDown(t *testing.T) {
	e := start(t)
	e.claim("data", e.class("ext4"), 64*mib, corev1.PersistentVolumeFilesystem)
	pv := e.bound("data")
	e.run(pod("writer", "data", false, "fill", 16*mib, 11))
	was := e.setImage("e2e.local/does-not-exist:1")
	e.await("node plugin that cannot start", e.pullFails)
	zero := int64(0)
	if err := client.CoreV1().Pods(e.ns).Delete(e.ctx, "writer", metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
		t.Fatal(err)
	}
	if device(pv.Spec.CSI.VolumeHandle) == "" {
		t.Error("the device went away although nobody could take it away")
	}
	e.setImage(was)
	e.settled(nodeSet)
	e.await("end of the device", func() error { return gone(pv) })
	e.run(pod("reader", "data", false, "check", 16*mib, 11))
}

// TestUpgradeBetweenUnpublishAndUnstage: the plugin is replaced while kubelet
// asks again and again to unstage a volume that somebody else still has mounted.
func TestUpgradeBetweenUnpublishAndUnstage(t *testing.T) {
	e := start(t)
	e.claim("data", e.class("ext4"), 64*mib, corev1.PersistentVolumeFilesystem)
	pv := e.bound("data")
	e.run(pod("writer", "data", false, "fill", 16*mib, 12))
	var staged string
	for _, m := range mountIDs(pv.Spec.CSI.VolumeHandle) {
		if strings.HasSuffix(m, "/globalmount") {
			staged = strings.Fields(m)[1]
		}
	}
	held := t.TempDir()
	mount(t, "--bind", staged, held)
	release := func() error { return syscall.Unmount(held, 0) }
	t.Cleanup(func() { _ = release() })
	e.remove("writer")
	if err := gone(pv); err == nil {
		t.Fatal("the volume is unstaged although it is still mounted")
	}
	e.rollout(nodeSet)
	if err := release(); err != nil {
		t.Fatal(err)
	}
	e.await("end of the device", func() error { return gone(pv) })
	e.run(pod("reader", "data", false, "check", 16*mib, 12))
}

func mount(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("mount", args...).CombinedOutput(); err != nil {
		t.Fatalf("mount %v: %v: %s", args, err, out)
	}
}

// TestClaimDeletedWhileCreating: the controller stands still in the middle of
// CreateVolume while the claim is deleted. No image stays.
func TestClaimDeletedWhileCreating(t *testing.T) {
	e := start(t)
	class := e.class("ext4")
	var stopped []int
	for _, pid := range processes("vhdx-csi") {
		if args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && strings.Contains(string(args), "--mode=controller") {
			stopped = append(stopped, pid)
		}
	}
	if len(stopped) == 0 {
		t.Fatal("there is no controller")
	}
	signal := func(s syscall.Signal) {
		for _, pid := range stopped {
			_ = syscall.Kill(pid, s) // one that was ended for not answering is started anew
		}
	}
	t.Cleanup(func() { signal(syscall.SIGCONT) })
	signal(syscall.SIGSTOP)
	e.claim("data", class, 64*mib, corev1.PersistentVolumeFilesystem)
	e.event("data", "External provisioner is provisioning volume")
	uid := e.claimUID("data")
	if err := client.CoreV1().PersistentVolumeClaims(e.ns).Delete(e.ctx, "data", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	e.await("end of the claim", func() error {
		_, err := client.CoreV1().PersistentVolumeClaims(e.ns).Get(e.ctx, "data", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("still there: %w", err)
	})
	signal(syscall.SIGCONT)
	// The provisioner's next look at another claim comes after its look at this one.
	e.claim("next", class, 64*mib, corev1.PersistentVolumeFilesystem)
	e.bound("next")
	e.await("end of the image", func() error {
		for _, record := range records(t) {
			if strings.Contains(record, uid) {
				return fmt.Errorf("its record is still there: %s", record)
			}
		}
		return nil
	})
}

func (e *env) claimUID(name string) string {
	e.Helper()
	c, err := client.CoreV1().PersistentVolumeClaims(e.ns).Get(e.ctx, name, metav1.GetOptions{})
	if err != nil {
		e.Fatal(err)
	}
	return string(c.UID)
}

// records are the pool's files about its volumes.
func records(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(poolDir, "volumes/*/*.json"))
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, f := range files {
		content, err := os.ReadFile(f)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		found = append(found, string(content))
	}
	return found
}

// TestTwentyPods: one volume each, at once.
func TestTwentyPods(t *testing.T) {
	e := start(t)
	class := e.class("ext4")
	began := time.Now()
	for i := range 20 {
		name := fmt.Sprintf("p%02d", i)
		e.claim(name, class, 32*mib, corev1.PersistentVolumeFilesystem)
		e.create(pod(name, name, false, "fill", mib, i+1))
	}
	for i := range 20 {
		e.ready(fmt.Sprintf("p%02d", i))
	}
	e.took("20 pods with a volume each ready", began)
	began = time.Now()
	zero := int64(0)
	if err := client.CoreV1().Pods(e.ns).DeleteCollection(e.ctx, metav1.DeleteOptions{GracePeriodSeconds: &zero}, metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	e.await("end of all devices", func() error {
		pvs, err := client.CoreV1().PersistentVolumes().List(e.ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for i := range pvs.Items {
			if pv := &pvs.Items[i]; pv.Spec.ClaimRef != nil && pv.Spec.ClaimRef.Namespace == e.ns {
				if err := gone(pv); err != nil {
					return err
				}
			}
		}
		return nil
	})
	e.took("their volumes unstaged", began)
}
