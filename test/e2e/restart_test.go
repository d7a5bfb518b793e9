package e2e

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// load is pods that write without fsync and verify past the page cache.
type load struct {
	*env
	pods   []*corev1.Pod
	pvs    []*corev1.PersistentVolume
	mounts [][]string
}

func startLoad(t *testing.T) *load {
	t.Helper()
	l := &load{env: start(t)}
	for _, v := range []struct {
		name, fstype string
		size         int64
	}{{"ext4", "ext4", 128 * mib}, {"xfs", "xfs", 320 * mib}, {"raw", "", 96 * mib}} {
		mode, block := corev1.PersistentVolumeFilesystem, v.fstype == ""
		if block {
			mode = corev1.PersistentVolumeBlock
		}
		l.claim(v.name, l.class(v.fstype), v.size, mode)
		pv := l.bound(v.name)
		l.pvs = append(l.pvs, pv)
		l.pods = append(l.pods, l.run(pod(v.name, v.name, block, "churn", 64*mib, 5)))
		l.mounts = append(l.mounts, mountIDs(pv.Spec.CSI.VolumeHandle))
	}
	return l
}

// during lets something happen to the driver: I/O goes on after it, nothing
// failed, no byte is wrong, nothing was mounted again, no container restarted.
func (l *load) during(what string, happen func()) {
	l.Helper()
	before := make([]status, len(l.pods))
	for i, p := range l.pods {
		before[i] = l.goesOn(p, l.status(p), 1)
		l.forgetGap(p)
	}
	happen()
	for i, p := range l.pods {
		s := l.goesOn(p, l.status(p), 40)
		l.figure(fmt.Sprintf("%s, gap of %s", what, p.Name), s.Gap)
		if got := mountIDs(l.pvs[i].Spec.CSI.VolumeHandle); !slices.Equal(got, l.mounts[i]) {
			l.Errorf("%s: mounts of %s are %v, were %v", what, p.Name, got, l.mounts[i])
		}
		now, err := client.CoreV1().Pods(l.ns).Get(l.ctx, p.Name, metav1.GetOptions{})
		if err != nil {
			l.Fatal(err)
		}
		if c := now.Status.ContainerStatuses[0]; c.RestartCount != 0 || now.Status.Phase != corev1.PodRunning {
			l.Errorf("%s: pod %s is %s, its container %+v", what, p.Name, now.Status.Phase, c)
		}
	}
}

// TestDriverDies: whatever ends the driver's processes costs running pods a
// pause and nothing else.
func TestDriverDies(t *testing.T) {
	l := startLoad(t)
	for range 5 {
		l.during("kill -9 of the worker", func() { l.killWorker() })
	}
	l.during("kubectl delete pod of the node pod", func() { l.deleteDriverPod(nodeSet, 60) })
	l.during("kubectl rollout restart of the node DaemonSet", func() { l.rollout(nodeSet) })
	// What cgroup v2's memory.oom.group makes of an out-of-memory kill. The
	// kill by the kernel itself is in `make chaos`.
	l.during("kill of the whole container", func() {
		pod := l.driverPod(nodeSet)
		for _, pid := range l.container(l.worker()) {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		l.restarted(pod)
	})
	l.during("kubectl delete pod of the keeper", func() {
		l.deleteDriverPod(keeperSet, 5)
		l.kept(len(l.pods))
	})
	l.during("kill -9 of the worker after that of the keeper", func() { l.killWorker() })
	l.during("a node pod deleted by force, and an image that cannot be pulled", func() {
		was := l.setImage("e2e.local/does-not-exist:1")
		p := l.driverPod(nodeSet)
		zero := int64(0)
		if err := client.CoreV1().Pods(driverNamespace).Delete(l.ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
			t.Fatal(err)
		}
		l.await("failed pull", func() error { return l.pullFails() })
		l.setImage(was)
		l.settled(nodeSet)
	})
	for _, p := range l.pods {
		l.remove(p.Name)
	}
	for _, pv := range l.pvs {
		l.await("end of the device", func() error { return gone(pv) })
	}
}

func (e *env) killWorker() {
	e.Helper()
	pid := e.worker()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		e.Fatal(err)
	}
	e.await("another worker", func() error {
		if e.worker() == pid {
			return fmt.Errorf("still %d", pid)
		}
		return nil
	})
}

// restarted waits until a container of the pod has been started again.
func (e *env) restarted(before *corev1.Pod) {
	e.Helper()
	e.await("restart of a container of "+before.Name, func() error {
		p, err := client.CoreV1().Pods(driverNamespace).Get(e.ctx, before.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for i, c := range p.Status.ContainerStatuses {
			if i < len(before.Status.ContainerStatuses) && c.RestartCount > before.Status.ContainerStatuses[i].RestartCount && c.Ready {
				return nil
			}
		}
		return fmt.Errorf("%+v", p.Status.ContainerStatuses)
	})
}

func (e *env) pullFails() error {
	pods, err := client.CoreV1().Pods(driverNamespace).List(e.ctx, metav1.ListOptions{LabelSelector: "app=" + nodeSet})
	if err != nil {
		return err
	}
	for _, p := range pods.Items {
		for _, c := range p.Status.ContainerStatuses {
			if w := c.State.Waiting; w != nil && (w.Reason == "ErrImagePull" || w.Reason == "ImagePullBackOff") {
				return nil
			}
		}
	}
	return fmt.Errorf("no pod fails to pull")
}

// TestKubeletRestart: kubelet stages again what is staged, which changes nothing.
func TestKubeletRestart(t *testing.T) {
	l := startLoad(t)
	l.during("restart of kubelet", func() {
		began := time.Now()
		l.kill("kubelet")
		l.await("Ready node after the restart", func() error {
			n, err := client.CoreV1().Nodes().Get(l.ctx, nodeName, metav1.GetOptions{})
			if err != nil {
				return err
			}
			for _, c := range n.Status.Conditions {
				if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue && c.LastHeartbeatTime.After(began) {
					return nil
				}
			}
			return fmt.Errorf("no heartbeat since")
		})
	})
	for _, p := range l.pods {
		l.remove(p.Name)
	}
	for _, pv := range l.pvs {
		l.await("end of the device", func() error { return gone(pv) })
	}
}
