package main

import (
	"os"
	"path/filepath"
	"testing"

	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
)

func TestSamples(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(deploy, "samples/*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no samples: %v", err)
	}
	classes := map[string]bool{}
	claims := map[string]*corev1.PersistentVolumeClaim{}
	users := map[string]corev1.PodSpec{}
	driver := func(file, name string) {
		if name != driverName {
			t.Errorf("%s: driver %q, want %q", file, name, driverName)
		}
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range decode(t, file, content) {
			switch o := o.(type) {
			case *storagev1.StorageClass:
				classes[o.Name] = true
				driver(file, o.Provisioner)
			case *storagev1.VolumeAttributesClass:
				driver(file, o.DriverName)
			case *snapshotv1.VolumeSnapshotClass:
				driver(file, o.Driver)
			case *groupv1.VolumeGroupSnapshotClass:
				driver(file, o.Driver)
			case *corev1.PersistentVolumeClaim:
				claims[o.Name] = o
			case *corev1.Pod:
				users[o.Name] = o.Spec
			}
		}
	}
	for _, c := range claims {
		if !classes[*c.Spec.StorageClassName] {
			t.Errorf("claim %s: there is no sample of class %q", c.Name, *c.Spec.StorageClassName)
		}
	}
	for pod, spec := range users {
		for _, v := range spec.Volumes {
			if v.PersistentVolumeClaim != nil && claims[v.PersistentVolumeClaim.ClaimName] == nil {
				t.Errorf("pod %s: there is no sample of claim %q", pod, v.PersistentVolumeClaim.ClaimName)
			}
		}
	}
}
