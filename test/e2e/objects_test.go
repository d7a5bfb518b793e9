package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const (
	mib = 1 << 20
	// The paths at which a pod has its volume.
	inFS  = "/vol/data"
	inRaw = "/dev/xvol"
)

// class makes a StorageClass, bound at once, that ends with the test. Raw
// volumes need no fstype.
func (e *env) class(fstype string, params ...string) string {
	e.Helper()
	return e.classOf(storagev1.VolumeBindingImmediate, fstype, params...)
}

func (e *env) classOf(mode storagev1.VolumeBindingMode, fstype string, params ...string) string {
	e.Helper()
	yes, policy := true, corev1.PersistentVolumeReclaimDelete
	c := &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-"}, Provisioner: driverName, AllowVolumeExpansion: &yes,
		VolumeBindingMode: &mode, ReclaimPolicy: &policy, Parameters: map[string]string{},
	}
	if fstype != "" {
		c.Parameters["csi.storage.k8s.io/fstype"] = fstype
	}
	for _, p := range params {
		k, v, _ := strings.Cut(p, "=")
		c.Parameters[k] = v
	}
	c, err := client.StorageV1().StorageClasses().Create(e.ctx, c, metav1.CreateOptions{})
	if err != nil {
		e.Fatal(err)
	}
	e.Cleanup(func() { _ = client.StorageV1().StorageClasses().Delete(e.ctx, c.Name, metav1.DeleteOptions{}) })
	return c.Name
}

func claimSpec(class string, size int64, mode corev1.PersistentVolumeMode, access corev1.PersistentVolumeAccessMode) corev1.PersistentVolumeClaimSpec {
	return corev1.PersistentVolumeClaimSpec{
		StorageClassName: &class, VolumeMode: &mode, AccessModes: []corev1.PersistentVolumeAccessMode{access},
		Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{
			corev1.ResourceStorage: *resource.NewQuantity(size, resource.BinarySI),
		}},
	}
}

// claim makes a PVC. mode is Filesystem or Block.
func (e *env) claim(name, class string, size int64, mode corev1.PersistentVolumeMode) {
	e.Helper()
	e.claimAs(name, claimSpec(class, size, mode, corev1.ReadWriteOnce))
}

func (e *env) claimAs(name string, spec corev1.PersistentVolumeClaimSpec) {
	e.Helper()
	c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}
	if _, err := client.CoreV1().PersistentVolumeClaims(e.ns).Create(e.ctx, c, metav1.CreateOptions{}); err != nil {
		e.Fatal(err)
	}
}

// bound waits until the claim is, and gives its volume.
func (e *env) bound(name string) *corev1.PersistentVolume {
	e.Helper()
	var volume string
	e.await("volume for the claim "+name, func() error {
		c, err := client.CoreV1().PersistentVolumeClaims(e.ns).Get(e.ctx, name, metav1.GetOptions{})
		if err == nil && c.Status.Phase != corev1.ClaimBound {
			err = fmt.Errorf("phase %s", c.Status.Phase)
		}
		volume = c.Spec.VolumeName
		return err
	})
	pv, err := client.CoreV1().PersistentVolumes().Get(e.ctx, volume, metav1.GetOptions{})
	if err != nil {
		e.Fatal(err)
	}
	return pv
}

// pod is one with the workload on a claim. block says how it has the volume.
func pod(name, claim string, block bool, work string, size int64, seed int) *corev1.Pod {
	path := inFS
	if block {
		path = inRaw
	}
	grace := int64(1)
	c := corev1.Container{
		Name: "work", Image: "e2e.local/workload:1",
		Args: []string{work, path, strconv.FormatInt(size, 10), strconv.Itoa(seed)},
		ReadinessProbe: &corev1.Probe{PeriodSeconds: 1, TimeoutSeconds: 5, FailureThreshold: 30, ProbeHandler: corev1.ProbeHandler{
			HTTPGet: &corev1.HTTPGetAction{Path: "/status", Port: intstr.FromInt32(8080)},
		}},
	}
	if block {
		c.VolumeDevices = []corev1.VolumeDevice{{Name: "vol", DevicePath: inRaw}}
	} else {
		c.VolumeMounts = []corev1.VolumeMount{{Name: "vol", MountPath: "/vol"}}
	}
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{
		TerminationGracePeriodSeconds: &grace, RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{c},
		Volumes: []corev1.Volume{{Name: "vol", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim},
		}}},
	}}
}

func (e *env) create(p *corev1.Pod) {
	e.Helper()
	if _, err := client.CoreV1().Pods(e.ns).Create(e.ctx, p, metav1.CreateOptions{}); err != nil {
		e.Fatal(err)
	}
}

// run makes the pod and waits until its work has come to where it is ready.
func (e *env) run(p *corev1.Pod) *corev1.Pod {
	e.Helper()
	began := time.Now()
	e.create(p)
	p = e.ready(p.Name)
	e.took("pod "+p.Name+" ready", began)
	return p
}

func (e *env) ready(name string) *corev1.Pod {
	e.Helper()
	var p *corev1.Pod
	e.await("pod "+name, func() (err error) {
		if p, err = client.CoreV1().Pods(e.ns).Get(e.ctx, name, metav1.GetOptions{}); err != nil {
			return err
		}
		if p.Status.Phase == corev1.PodFailed {
			e.Fatalf("pod %s failed: %+v", name, p.Status.ContainerStatuses)
		}
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("phase %s, conditions %+v", p.Status.Phase, p.Status.Conditions)
	})
	return p
}

// remove deletes a pod and waits until it is gone.
func (e *env) remove(name string) {
	e.Helper()
	if err := client.CoreV1().Pods(e.ns).Delete(e.ctx, name, metav1.DeleteOptions{}); err != nil {
		e.Fatal(err)
	}
	e.await("end of pod "+name, func() error {
		_, err := client.CoreV1().Pods(e.ns).Get(e.ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("still there: %w", err)
	})
}

// status is what the workload of a pod says.
type status struct {
	Ready    bool
	Sum      string
	Writes   int64
	Verified int64
	Gap      time.Duration
	Size     int64
	Error    string
}

var asker = http.Client{Timeout: 30 * time.Second}

// status asks the workload. One that has failed fails the test.
func (e *env) status(p *corev1.Pod) status {
	e.Helper()
	answer, err := asker.Get("http://" + net.JoinHostPort(p.Status.PodIP, "8080") + "/status")
	if err != nil {
		e.Fatalf("ask the workload of pod %s: %v", p.Name, err)
	}
	defer func() { _ = answer.Body.Close() }()
	var s status
	if err := json.NewDecoder(answer.Body).Decode(&s); err != nil {
		e.Fatal(err)
	}
	if s.Error != "" {
		e.Fatalf("the workload of pod %s: %s", p.Name, s.Error)
	}
	return s
}

// forgetGap begins a new measurement of the longest I/O.
func (e *env) forgetGap(p *corev1.Pod) {
	e.Helper()
	answer, err := asker.Post("http://"+net.JoinHostPort(p.Status.PodIP, "8080")+"/reset", "", nil)
	if err != nil {
		e.Fatal(err)
	}
	_ = answer.Body.Close()
}

// goesOn waits until the workload has written and verified more blocks than before.
func (e *env) goesOn(p *corev1.Pod, before status, blocks int64) status {
	e.Helper()
	var s status
	e.await("I/O in pod "+p.Name, func() error {
		if s = e.status(p); s.Verified < before.Verified+blocks {
			return fmt.Errorf("%d blocks verified since", s.Verified-before.Verified)
		}
		return nil
	})
	return s
}
