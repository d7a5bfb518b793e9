package e2e

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// script is a pod that runs a shell command on the volume at /vol, as user 1000.
func script(name, claim, command string) *corev1.Pod {
	p := pod(name, claim, false, "", 0, 0)
	user, yes := int64(1000), true
	p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &user, RunAsGroup: &user, RunAsNonRoot: &yes}
	c := &p.Spec.Containers[0]
	c.Image, c.Args, c.ReadinessProbe = "registry.k8s.io/e2e-test-images/busybox:1.37.0-1", nil, nil
	c.Command = []string{"sh", "-c", command}
	c.TerminationMessagePolicy = corev1.TerminationMessageFallbackToLogsOnError
	return p
}

// succeeds waits for the end of a script.
func (e *env) succeeds(name string) {
	e.Helper()
	e.await("end of pod "+name, func() error {
		p, err := client.CoreV1().Pods(e.ns).Get(e.ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if p.Status.Phase == corev1.PodFailed {
			e.Fatalf("pod %s failed: %+v", name, p.Status.ContainerStatuses)
		}
		if p.Status.Phase != corev1.PodSucceeded {
			return fmt.Errorf("phase %s", p.Status.Phase)
		}
		return nil
	})
}

// TestNonRoot: with fsGroup a pod that is not root writes, subPaths too.
func TestNonRoot(t *testing.T) {
	t.Parallel()
	e := start(t)
	e.claim("data", "vhdx", 64*mib, corev1.PersistentVolumeFilesystem)
	group := int64(2000)
	write := script("write", "data", `set -e; id -G | grep -w 2000; echo kept >/vol/f; test "$(stat -c %g /vol/f)" = 2000; echo sub >/sub/f`)
	write.Spec.SecurityContext.FSGroup = &group
	c := &write.Spec.Containers[0]
	c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "vol", MountPath: "/sub", SubPath: "deep/er"})
	e.create(write)
	e.succeeds("write")
	e.remove("write")

	read := script("read", "data", `set -e; grep kept /vol/f; grep sub /vol/deep/er/f; ! touch /vol/new; grep " /vol .*[ ,]ro[ ,]" /proc/mounts`)
	read.Spec.Containers[0].VolumeMounts[0].ReadOnly = true
	e.create(read)
	e.succeeds("read")
	e.remove("read")

	// Read-only as a claim, which kubelet tells the driver.
	read = script("published", "data", `set -e; grep kept /vol/f; ! touch /vol/new`)
	read.Spec.Volumes[0].PersistentVolumeClaim.ReadOnly = true
	e.create(read)
	e.succeeds("published")
}

// TestWithoutFSGroup: without it the volume is root's.
func TestWithoutFSGroup(t *testing.T) {
	t.Parallel()
	e := start(t)
	e.claim("data", "vhdx", 64*mib, corev1.PersistentVolumeFilesystem)
	e.create(script("write", "data", `! touch /vol/f`))
	e.succeeds("write")
}

// TestReadWriteOncePod: a second pod is not started while there is a first.
func TestReadWriteOncePod(t *testing.T) {
	t.Parallel()
	e := start(t)
	e.claimAs("data", claimSpec(e.class("ext4"), 64*mib, corev1.PersistentVolumeFilesystem, corev1.ReadWriteOncePod))
	e.run(pod("first", "data", false, "fill", mib, 1))
	e.create(pod("second", "data", false, "check", mib, 1))
	e.await("refusal of the second pod", func() error {
		p, err := client.CoreV1().Pods(e.ns).Get(e.ctx, "second", metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && strings.Contains(c.Message, "ReadWriteOncePod") {
				return nil
			}
		}
		return fmt.Errorf("phase %s, %+v", p.Status.Phase, p.Status.Conditions)
	})
	// Past the scheduler kubelet refuses it too.
	forced := pod("forced", "data", false, "check", mib, 1)
	forced.Spec.NodeName = nodeName
	e.create(forced)
	e.event("forced", "ReadWriteOncePod")
	e.remove("forced")
	e.remove("first")
	e.ready("second")
}

// event waits for one about an object of this name that contains the text.
func (e *env) event(object, text string) string {
	e.Helper()
	var found string
	e.await(fmt.Sprintf("event of %s that says %q", object, text), func() error {
		events, err := client.CoreV1().Events(e.ns).List(e.ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		var others []string
		for _, ev := range events.Items {
			if ev.InvolvedObject.Name != object {
				continue
			}
			if strings.Contains(ev.Message, text) {
				found = ev.Message
				return nil
			}
			others = append(others, ev.Reason+": "+ev.Message)
		}
		return fmt.Errorf("there are %q", others)
	})
	return found
}

// TestEphemeral: a volume that lives as long as its pod.
func TestEphemeral(t *testing.T) {
	t.Parallel()
	e := start(t)
	p := pod("short", "", false, "fill", mib, 1)
	p.Spec.Volumes[0].VolumeSource = corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{
		VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{
			Spec: claimSpec("vhdx", 64*mib, corev1.PersistentVolumeFilesystem, corev1.ReadWriteOnce),
		},
	}}
	e.run(p)
	pv := e.bound("short-vol")
	e.remove("short")
	e.await("end of the volume", func() error {
		if err := gone(pv); err != nil {
			return err
		}
		pvs, err := client.CoreV1().PersistentVolumes().List(e.ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, v := range pvs.Items {
			if v.Name == pv.Name {
				return fmt.Errorf("%s is %s", v.Name, v.Status.Phase)
			}
		}
		return nil
	})
}
