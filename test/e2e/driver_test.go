package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	nodeSet   = "vhdx-csi-node"
	keeperSet = "vhdx-csi-keeper"
)

// driverPod is the running pod of one of the driver's DaemonSets.
func (e *env) driverPod(set string) *corev1.Pod {
	e.Helper()
	var found *corev1.Pod
	e.await("pod of "+set, func() error {
		pods, err := client.CoreV1().Pods(driverNamespace).List(e.ctx, metav1.ListOptions{LabelSelector: "app=" + set})
		if err != nil {
			return err
		}
		for i, p := range pods.Items {
			if p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil {
				found = &pods.Items[i]
				return nil
			}
		}
		return fmt.Errorf("%d pods, none runs", len(pods.Items))
	})
	return found
}

// kept waits until the keeper holds this many volumes. A worker that dies
// before that takes the others along, as in a power cut.
func (e *env) kept(volumes int) {
	e.Helper()
	e.await("keeper that holds everything", func() error {
		out, err := exec.Command(os.Getenv("CLUSTER_PLUGIN"), "keeper", "status", "--keeper-socket=/run/vhdx-csi/keeper.sock").CombinedOutput()
		if err == nil && strings.Count(string(out), "\nholds ") != volumes {
			err = errors.New("it does not hold them")
		}
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// settled waits until a DaemonSet runs what it is told to, and its plugin is
// ready to be called.
func (e *env) settled(set string) {
	e.Helper()
	e.await("rollout of "+set, func() error {
		d, err := client.AppsV1().DaemonSets(driverNamespace).Get(e.ctx, set, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if s := d.Status; s.ObservedGeneration < d.Generation || s.UpdatedNumberScheduled != 1 || s.NumberReady != 1 || s.NumberUnavailable != 0 {
			return fmt.Errorf("status %+v", s)
		}
		return nil
	})
}

func (e *env) deleteDriverPod(set string, grace int64) {
	e.Helper()
	p := e.driverPod(set)
	if err := client.CoreV1().Pods(driverNamespace).Delete(e.ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: &grace}); err != nil {
		e.Fatal(err)
	}
	e.await("another pod of "+set, func() error {
		if next := e.driverPod(set); next.UID == p.UID {
			return fmt.Errorf("still %s", p.Name)
		}
		return nil
	})
	e.settled(set)
}

// patch changes the pod template of one of the driver's DaemonSets.
func (e *env) patch(set string, template map[string]any) *appsv1.DaemonSet {
	e.Helper()
	b, err := json.Marshal(map[string]any{"spec": map[string]any{"template": template}})
	if err != nil {
		e.Fatal(err)
	}
	d, err := client.AppsV1().DaemonSets(driverNamespace).Patch(e.ctx, set, types.StrategicMergePatchType, b, metav1.PatchOptions{})
	if err != nil {
		e.Fatal(err)
	}
	return d
}

// rollout is what `kubectl rollout restart` does.
func (e *env) rollout(set string) {
	e.Helper()
	e.patch(set, map[string]any{"metadata": map[string]any{"annotations": map[string]any{
		"kubectl.kubernetes.io/restartedAt": time.Now().Format(time.RFC3339Nano),
	}}})
	e.settled(set)
}

// setImage gives the plugin of the node DaemonSet another image.
func (e *env) setImage(image string) (before string) {
	e.Helper()
	d, err := client.AppsV1().DaemonSets(driverNamespace).Get(e.ctx, nodeSet, metav1.GetOptions{})
	if err != nil {
		e.Fatal(err)
	}
	for _, c := range d.Spec.Template.Spec.Containers {
		if c.Name == "vhdx-csi" {
			before = c.Image
		}
	}
	e.patch(nodeSet, map[string]any{"spec": map[string]any{"containers": []map[string]any{{"name": "vhdx-csi", "image": image}}}})
	return before
}

// kill ends the processes with this name, and waits for their successors.
func (e *env) kill(name string) {
	e.Helper()
	old := processes(name)
	if len(old) == 0 {
		e.Fatalf("there is no process %s", name)
	}
	for _, pid := range old {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			e.Fatal(err)
		}
	}
	e.await("another "+name, func() error {
		now := processes(name)
		for _, pid := range now {
			for _, o := range old {
				if pid == o {
					return fmt.Errorf("process %d is still there", pid)
				}
			}
		}
		if len(now) != len(old) {
			return fmt.Errorf("there are %d", len(now))
		}
		return nil
	})
}

// worker is the process that serves this node's volumes.
func (e *env) worker() int {
	e.Helper()
	var pid int
	e.await("worker", func() error {
		found := processes("vhdx-worker")
		for _, p := range found {
			if args, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p), "cmdline")); err == nil && strings.Contains(string(args), "--mode=node") {
				pid = p
				return nil
			}
		}
		return fmt.Errorf("processes %v", found)
	})
	return pid
}

// container lists all processes of the container that pid is in.
func (e *env) container(pid int) []int {
	e.Helper()
	dir := e.cgroup(pid, "memory")
	content, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		e.Fatal(err)
	}
	var pids []int
	for f := range strings.FieldsSeq(string(content)) {
		p, _ := strconv.Atoi(f)
		pids = append(pids, p)
	}
	return pids
}

// cgroup is the directory of a process in a hierarchy of cgroup v1, or in v2.
func (e *env) cgroup(pid int, controller string) string {
	e.Helper()
	content, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
	if err != nil {
		e.Fatal(err)
	}
	for line := range strings.SplitSeq(strings.TrimSpace(string(content)), "\n") {
		f := strings.SplitN(line, ":", 3)
		if f[1] == controller {
			return filepath.Join("/sys/fs/cgroup", controller, f[2])
		}
		if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil && f[0] == "0" {
			return filepath.Join("/sys/fs/cgroup", f[2])
		}
	}
	e.Fatalf("process %d is in no cgroup of %s: %s", pid, controller, content)
	return ""
}
