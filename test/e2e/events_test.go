package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"
)

// TestEvents: what is wrong stands in the claim's events, with what to do.
func TestEvents(t *testing.T) {
	for _, tt := range []struct {
		name, param string
		size        int64
		late        bool // bound when a pod uses it
		says        []string
	}{
		{"value", "subformat=sparse", 64 * mib, false, []string{"subformat", "dynamic", "fixed"}},
		{"key", "blocksize=32Mi", 64 * mib, false, []string{"blocksize", "blockSize"}},
		{"pool", "pool=nowhere", 64 * mib, false, []string{"nowhere", "default"}},
		{"pool of a claim that waits", "pool=nowhere", 64 * mib, true, []string{"nowhere", "default"}},
		{"full", "subformat=fixed", 1 << 45, false, []string{"room", "overcommit"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e := start(t)
			mode := storagev1.VolumeBindingImmediate
			if tt.late {
				mode = storagev1.VolumeBindingWaitForFirstConsumer
				e.create(pod("user", "data", false, "fill", mib, 1))
			}
			e.claim("data", e.classOf(mode, "ext4", tt.param), tt.size, corev1.PersistentVolumeFilesystem)
			message := e.event("data", tt.says[0])
			t.Logf("event: %s", message)
			for _, want := range tt.says {
				if !strings.Contains(message, want) {
					t.Errorf("it does not say %q", want)
				}
			}
		})
	}
}

// TestPoolNotWritable: a pool that the controller may not write to.
func TestPoolNotWritable(t *testing.T) {
	e := start(t)
	class := e.class("ext4")
	for _, dir := range []string{"volumes", "images"} {
		path := filepath.Join(poolDir, dir)
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o555); err != nil { //nolint:gosec // that is the test
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Chmod(path, info.Mode()) })
	}
	e.claim("data", class, 64*mib, corev1.PersistentVolumeFilesystem)
	message := e.event("data", "cannot be written")
	t.Logf("event: %s", message)
	if !strings.Contains(message, "2770") {
		t.Error("it does not say what to do")
	}
	for _, dir := range []string{"volumes", "images"} {
		if err := os.Chmod(filepath.Join(poolDir, dir), 0o2770); err != nil { //nolint:gosec // as it was
			t.Fatal(err)
		}
	}
	e.bound("data")
}

// sharesDir is a directory of this host that the driver's pods see as /pools/more,
// with whatever is mounted in it.
const sharesDir = "/var/lib/e2e-shares"

// TestPoolNotAvailable: of three pools one is not there and one is mounted
// read-only. Their claims say so, and what to do; the third pool is served; and
// when it has been done the claims get their volumes.
func TestPoolNotAvailable(t *testing.T) {
	frozen, absent := filepath.Join(sharesDir, "frozen"), filepath.Join(sharesDir, "absent")
	if err := os.MkdirAll(frozen, 0o755); err != nil { //nolint:gosec // a mount point
		t.Fatal(err)
	}
	share := func(flags string) {
		mount(t, "-t", "tmpfs", "-o", flags+",size=64m,mode=2770,uid=65532,gid=65532", "e2e-share", frozen)
	}
	share("ro")
	t.Cleanup(func() { unmountAll(t, frozen); _ = os.RemoveAll(sharesDir) })
	morePools(t, "frozen=/pools/more/frozen,overcommit=10", "absent=/pools/more/absent")
	e := start(t) // ends, with its volumes, before these pools do

	for _, tt := range []struct{ pool, says string }{
		{"frozen", "its filesystem is mounted read-only; mount it read-write"},
		{"absent", "its directory /pools/more/absent is not there; mount the share there"},
	} {
		e.claim(tt.pool, e.class("ext4", "pool="+tt.pool), 64*mib, corev1.PersistentVolumeFilesystem)
		t.Logf("event: %s", e.event(tt.pool, tt.says))
	}
	e.claim("other", e.class("ext4"), 64*mib, corev1.PersistentVolumeFilesystem)
	e.run(pod("other", "other", false, "fill", mib, 31))

	unmountAll(t, frozen)
	share("rw")
	if out, err := exec.Command("install", "-d", "-o", "65532", "-g", "65532", "-m", "2770", absent).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for i, p := range []string{"frozen", "absent"} {
		e.bound(p)
		e.run(pod(p, p, false, "fill", mib, 32+i))
	}
	e.pauses("frozen", frozen)
}

// pauses fills a pool: what a pod writes then waits, its claim says so, and it
// goes on when there is room again.
func (e *env) pauses(pool, dir string) {
	e.Helper()
	e.claim("paused", e.class("ext4", "pool="+pool, "blockSize=1Mi"), 64*mib, corev1.PersistentVolumeFilesystem)
	e.run(pod("before", "paused", false, "fill", mib, 34))
	e.remove("before")
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		e.Fatal(err)
	}
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, int64(fs.Bavail)*fs.Bsize-8*mib), 0o600); err != nil {
		e.Fatal(err)
	}
	e.create(pod("paused", "paused", false, "fill", 16*mib, 35))
	e.Logf("event: %s", e.event("paused", "writes wait"))
	began := time.Now()
	if err := os.Remove(ballast); err != nil {
		e.Fatal(err)
	}
	p := e.ready("paused")
	e.took("pod ready after the share has room again", began)
	want := e.status(p).Sum
	e.remove("paused")
	if got := e.status(e.run(pod("after", "paused", false, "check", 16*mib, 35))).Sum; got != want {
		e.Errorf("written %s, read %s", want, got)
	}
}

// unmountAll takes away what is mounted there.
func unmountAll(t *testing.T, dir string) {
	t.Helper()
	err := error(nil)
	for err == nil {
		err = syscall.Unmount(dir, 0)
	}
	if !errors.Is(err, syscall.EINVAL) {
		t.Errorf("unmount %s: %v", dir, err)
	}
}

// morePools has controller and node plugin serve more pools, below /pools/more,
// until the test ends.
func morePools(t *testing.T, pools ...string) {
	t.Helper()
	e := &env{T: t, ctx: context.WithoutCancel(t.Context()), ns: driverNamespace}
	was := e.templates()
	e.Cleanup(func() { e.setTemplates(was) })
	now := templates{*was.controller.DeepCopy(), *was.node.DeepCopy()}
	for _, t := range []*corev1.PodTemplateSpec{&now.controller, &now.node} {
		t.Spec.Volumes = append(t.Spec.Volumes, corev1.Volume{Name: "more", VolumeSource: corev1.VolumeSource{
			HostPath: &corev1.HostPathVolumeSource{Path: sharesDir},
		}})
		i := slices.IndexFunc(t.Spec.Containers, func(c corev1.Container) bool { return c.Name == "vhdx-csi" })
		c, propagate := &t.Spec.Containers[i], corev1.MountPropagationHostToContainer
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "more", MountPath: "/pools/more", MountPropagation: &propagate})
		for _, p := range pools {
			c.Args = append(c.Args, "--pool="+p)
		}
	}
	e.setTemplates(now)
}

// templates are of the pods that know the pools.
type templates struct{ controller, node corev1.PodTemplateSpec }

const controllerName = "vhdx-csi-controller"

func (e *env) templates() templates {
	e.Helper()
	c, err := client.AppsV1().Deployments(driverNamespace).Get(e.ctx, controllerName, metav1.GetOptions{})
	if err != nil {
		e.Fatal(err)
	}
	n, err := client.AppsV1().DaemonSets(driverNamespace).Get(e.ctx, nodeSet, metav1.GetOptions{})
	if err != nil {
		e.Fatal(err)
	}
	return templates{c.Spec.Template, n.Spec.Template}
}

// setTemplates changes both, and waits until they run.
func (e *env) setTemplates(t templates) {
	e.Helper()
	controllers, nodes := client.AppsV1().Deployments(driverNamespace), client.AppsV1().DaemonSets(driverNamespace)
	if err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		n, err := nodes.Get(e.ctx, nodeSet, metav1.GetOptions{})
		if err == nil {
			n.Spec.Template = t.node
			_, err = nodes.Update(e.ctx, n, metav1.UpdateOptions{})
		}
		return err
	}); err != nil {
		e.Fatal(err)
	}
	var c *appsv1.Deployment
	if err := retry.RetryOnConflict(retry.DefaultRetry, func() (err error) {
		if c, err = controllers.Get(e.ctx, controllerName, metav1.GetOptions{}); err == nil {
			c.Spec.Template = t.controller
			_, err = controllers.Update(e.ctx, c, metav1.UpdateOptions{})
		}
		return err
	}); err != nil {
		e.Fatal(err)
	}
	e.settled(nodeSet)
	e.await("rollout of the controller", func() error {
		now, err := controllers.Get(e.ctx, controllerName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if s := now.Status; s.ObservedGeneration < now.Generation || s.UpdatedReplicas != 1 || s.Replicas != 1 || s.AvailableReplicas != 1 {
			return fmt.Errorf("status %+v", s)
		}
		return nil
	})
}
