package e2e

import (
	"bufio"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// poolKey is the topology key of the pool default.
const poolKey = "pool." + driverName + "/default"

// TestStorageCapacity: the scheduler is told what room there is, and goes on
// being told. A claim that waits for its pod gets a volume where it fits, and
// keeps the pod waiting, with a reason, where it does not.
func TestStorageCapacity(t *testing.T) {
	e := start(t)
	class := e.classOf(storagev1.VolumeBindingWaitForFirstConsumer, "ext4")
	was := e.room(class)
	if got := was.NodeTopology.MatchLabels; len(got) == 0 || got[poolKey] != nodeName {
		t.Errorf("the room is at nodes with the labels %v, want %s=%s", got, poolKey, nodeName)
	}
	if got := was.OwnerReferences; len(got) != 1 || got[0].Kind != "Deployment" {
		t.Errorf("it belongs to %+v, want the controller's Deployment", got)
	}

	e.claim("fits", class, 64*mib, corev1.PersistentVolumeFilesystem)
	e.run(pod("user", "fits", false, "fill", 16*mib, 21))
	pv := e.bound("fits")
	if terms := pv.Spec.NodeAffinity.Required.NodeSelectorTerms; len(terms) != 1 || len(terms[0].MatchExpressions) != 1 ||
		terms[0].MatchExpressions[0].Key != poolKey || terms[0].MatchExpressions[0].Values[0] != nodeName {
		t.Errorf("the volume goes to nodes %+v", terms)
	}
	e.await("less room, in the same object", func() error {
		if now := e.room(class); now.Capacity.Cmp(*was.Capacity) >= 0 {
			return fmt.Errorf("%v, and %v before", now.Capacity, was.Capacity)
		}
		return nil
	})

	e.claim("large", class, 1<<45, corev1.PersistentVolumeFilesystem)
	e.create(pod("waits", "large", false, "fill", mib, 22))
	t.Logf("event: %s", e.event("waits", "did not have enough free storage"))

	asked := e.capacityCalls()
	e.await("some more looks at the room", func() error {
		if more := e.capacityCalls() - asked; more < 10 {
			return fmt.Errorf("%v", more)
		}
		return nil
	})
	if now := e.room(class); now.UID != was.UID {
		t.Errorf("the object is another one: %s, and %s before", now.Name, was.Name)
	}
}

// room waits for the one object that says what room a class has.
func (e *env) room(class string) *storagev1.CSIStorageCapacity {
	e.Helper()
	var found *storagev1.CSIStorageCapacity
	e.await("room of class "+class, func() error {
		all, err := client.StorageV1().CSIStorageCapacities(driverNamespace).List(e.ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		var names []string
		for i, c := range all.Items {
			if c.StorageClassName == class {
				found, names = &all.Items[i], append(names, c.Name)
			}
		}
		if len(names) != 1 || found.Capacity == nil || found.Capacity.IsZero() {
			return fmt.Errorf("there are %v", names)
		}
		return nil
	})
	return found
}

// capacityCalls is how often the controller has been asked what room there is.
func (e *env) capacityCalls() (sum float64) {
	e.Helper()
	pods, err := client.CoreV1().Pods(driverNamespace).List(e.ctx, metav1.ListOptions{LabelSelector: "app=vhdx-csi-controller"})
	if err != nil {
		e.Fatal(err)
	}
	for _, p := range pods.Items {
		answer, err := asker.Get("http://" + net.JoinHostPort(p.Status.PodIP, "9809") + "/metrics")
		if err != nil {
			e.Fatal(err)
		}
		lines := bufio.NewScanner(answer.Body)
		for lines.Scan() {
			if strings.HasPrefix(lines.Text(), "vhdx_csi_rpc_duration_seconds_count{") && strings.Contains(lines.Text(), `method="GetCapacity"`) {
				n, _ := strconv.ParseFloat(lines.Text()[strings.LastIndex(lines.Text(), " ")+1:], 64)
				sum += n
			}
		}
		_ = answer.Body.Close()
	}
	return sum
}
