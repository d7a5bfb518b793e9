package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	driverName      = "csi.vhdx.dev"
	driverNamespace = "vhdx-csi"
	nodeName        = "node1"
	stateDir        = "/var/lib/vhdx-csi/node"
	// patience is how long anything may take before a test gives up. Nothing
	// is measured by it.
	patience = 3 * time.Minute
)

var (
	client  kubernetes.Interface
	objects dynamic.Interface // for the kinds of the snapshot CRDs
	poolDir = os.Getenv("CLUSTER_POOL")
)

func TestMain(m *testing.M) {
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err == nil && poolDir == "" {
		err = fmt.Errorf("CLUSTER_POOL is not set")
	}
	if err == nil {
		config.QPS, config.Burst = 200, 400
		client, err = kubernetes.NewForConfig(config)
	}
	if err == nil {
		objects, err = dynamic.NewForConfig(config)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "these tests run in the cluster of `make e2e`: %v\n", err)
		os.Exit(1)
	}
	status := m.Run()
	// What snapshots alone have kept goes in the background.
	for end := time.Now().Add(patience); len(left()) > 0 && time.Now().Before(end); {
		time.Sleep(time.Second)
	}
	for _, l := range left() {
		fmt.Println("left behind:", l)
		status = max(status, 1)
	}
	os.Exit(status)
}

// left lists what no test may leave: files of volumes in the pool, and what the
// node has of any.
func left() []string {
	var found []string
	for _, pattern := range []string{
		filepath.Join(poolDir, "volumes/*/*"), filepath.Join(poolDir, "snapshots/*/*"), filepath.Join(poolDir, "retired/*/*"),
		filepath.Join(poolDir, "groups/*/*"), filepath.Join(poolDir, "cuts/*/*"), filepath.Join(poolDir, "images/*/*"), filepath.Join(stateDir, "entries/*"), filepath.Join(stateDir, "set-aside/*"),
	} {
		files, _ := filepath.Glob(pattern) // the pattern is well-formed
		found = append(found, files...)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return append(found, err.Error())
	}
	for line := range strings.SplitSeq(string(mounts), "\n") {
		if strings.Contains(line, "kubernetes.io/csi/") || strings.Contains(line, "kubernetes.io~csi") || strings.Contains(line, "csi-vhdx-") {
			found = append(found, "mount "+line)
		}
	}
	return found
}

// env is a test's namespace.
type env struct {
	*testing.T
	ctx context.Context
	ns  string
}

// start makes a namespace that ends with the test, and waits then until its
// volumes are gone: a test that leaves something fails itself.
func start(t *testing.T) *env {
	t.Helper()
	e := &env{T: t, ctx: context.WithoutCancel(t.Context())}
	ns, err := client.CoreV1().Namespaces().Create(e.ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	e.ns = ns.Name
	t.Cleanup(e.end)
	return e
}

func (e *env) end() {
	if e.Failed() {
		e.explain()
	}
	var handles []string
	pvs, err := client.CoreV1().PersistentVolumes().List(e.ctx, metav1.ListOptions{})
	if err != nil {
		e.Fatal(err)
	}
	for _, pv := range pvs.Items {
		if pv.Spec.ClaimRef != nil && pv.Spec.ClaimRef.Namespace == e.ns && pv.Spec.CSI != nil {
			handles = append(handles, pv.Spec.CSI.VolumeHandle)
		}
	}
	// Pods first: a namespace deletes in no order.
	zero := int64(0)
	_ = client.CoreV1().Pods(e.ns).DeleteCollection(e.ctx, metav1.DeleteOptions{GracePeriodSeconds: &zero}, metav1.ListOptions{})
	if err := client.CoreV1().Namespaces().Delete(e.ctx, e.ns, metav1.DeleteOptions{}); err != nil {
		e.Error(err)
	}
	e.await("end of the namespace", func() error {
		_, err := client.CoreV1().Namespaces().Get(e.ctx, e.ns, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("still there: %w", err)
	})
	e.await("end of the volumes", func() error {
		pvs, err := client.CoreV1().PersistentVolumes().List(e.ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, pv := range pvs.Items {
			if pv.Spec.ClaimRef != nil && pv.Spec.ClaimRef.Namespace == e.ns {
				return fmt.Errorf("%s (%s) is %s", pv.Name, pv.Spec.ClaimRef.Name, pv.Status.Phase)
			}
		}
		return nil
	})
	for _, h := range handles {
		if d := device(h); d != "" {
			e.Errorf("volume %s is deleted and its device %s is still there", h, d)
		}
	}
}

// await tries until it works, and fails the test when that takes too long.
func (e *env) await(what string, try func() error) {
	e.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			e.Fatalf("no %s within %v: %v", what, patience, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// took prints a figure that nothing judges.
func (e *env) took(what string, since time.Time) {
	e.Helper()
	e.figure(what, time.Since(since))
}

func (e *env) figure(what string, d time.Duration) {
	e.Helper()
	e.Attr(strings.ReplaceAll(what, " ", "_"), d.Round(time.Millisecond).String())
}

// explain prints what Kubernetes says about the namespace.
func (e *env) explain() {
	events, err := client.CoreV1().Events(e.ns).List(e.ctx, metav1.ListOptions{})
	if err != nil {
		e.Log(err)
		return
	}
	for _, ev := range events.Items {
		e.Logf("event: %s %s/%s: %s: %s", ev.LastTimestamp.Format(time.TimeOnly), ev.InvolvedObject.Kind, ev.InvolvedObject.Name, ev.Reason, ev.Message)
	}
	pods, err := client.CoreV1().Pods(e.ns).List(e.ctx, metav1.ListOptions{})
	if err != nil {
		e.Log(err)
		return
	}
	for _, p := range pods.Items {
		e.Logf("pod %s: %s %+v", p.Name, p.Status.Phase, p.Status.ContainerStatuses)
	}
}
