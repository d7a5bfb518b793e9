package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var (
	snapshots = schema.GroupVersionResource{Group: "snapshot.storage.k8s.io", Version: "v1", Resource: "volumesnapshots"}
	groups    = schema.GroupVersionResource{Group: "groupsnapshot.storage.k8s.io", Version: "v1", Resource: "volumegroupsnapshots"}
)

// snapshot makes a VolumeSnapshot of a claim and waits until it can be used.
func (e *env) snapshot(name, claim string) {
	e.Helper()
	began := time.Now()
	_, err := objects.Resource(snapshots).Namespace(e.ns).Create(e.ctx, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": map[string]any{"name": name},
		"spec": map[string]any{"volumeSnapshotClassName": "vhdx", "source": map[string]any{"persistentVolumeClaimName": claim}},
	}}, metav1.CreateOptions{})
	if err != nil {
		e.Fatal(err)
	}
	e.usable(snapshots, name)
	e.took("snapshot "+name, began)
}

// usable waits until a snapshot, or a group of them, can be used.
func (e *env) usable(kind schema.GroupVersionResource, name string) *unstructured.Unstructured {
	e.Helper()
	var o *unstructured.Unstructured
	e.await(kind.Resource+" "+name, func() (err error) {
		if o, err = objects.Resource(kind).Namespace(e.ns).Get(e.ctx, name, metav1.GetOptions{}); err != nil {
			return err
		}
		if ready, _, _ := unstructured.NestedBool(o.Object, "status", "readyToUse"); !ready {
			return fmt.Errorf("status %v", o.Object["status"])
		}
		return nil
	})
	return o
}

// drop deletes a snapshot, or a group of them, and waits until it is gone.
func (e *env) drop(kind schema.GroupVersionResource, name string) {
	e.Helper()
	if err := objects.Resource(kind).Namespace(e.ns).Delete(e.ctx, name, metav1.DeleteOptions{}); err != nil {
		e.Fatal(err)
	}
	e.await("end of "+kind.Resource+" "+name, func() error {
		_, err := objects.Resource(kind).Namespace(e.ns).Get(e.ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("still there: %w", err)
	})
}

// claimFrom makes a claim of a VolumeSnapshot or of another claim.
func (e *env) claimFrom(name, class string, size int64, mode corev1.PersistentVolumeMode, kind, source string) {
	e.Helper()
	spec := claimSpec(class, size, mode, corev1.ReadWriteOnce)
	spec.DataSource = &corev1.TypedLocalObjectReference{Kind: kind, Name: source}
	if kind == "VolumeSnapshot" {
		group := snapshots.Group
		spec.DataSource.APIGroup = &group
	}
	e.claimAs(name, spec)
}

var kinds = []struct {
	name, fstype string
	size         int64
	mode         corev1.PersistentVolumeMode
}{
	{"ext4", "ext4", 128 * mib, corev1.PersistentVolumeFilesystem},
	{"xfs", "xfs", 320 * mib, corev1.PersistentVolumeFilesystem},
	{"btrfs", "btrfs", 256 * mib, corev1.PersistentVolumeFilesystem},
	{"raw", "", 96 * mib, corev1.PersistentVolumeBlock},
}

// TestSnapshot: a snapshot taken while a database writes, restored to a larger
// volume beside it, has every record that was acknowledged before. So has a
// clone. Both live on when what they were made of is gone.
func TestSnapshot(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			e := start(t)
			block, class := k.mode == corev1.PersistentVolumeBlock, e.class(k.fstype)
			e.claim("db", class, k.size, k.mode)
			db := e.run(pod("db", "db", block, "ledger", 64*mib, 1))
			before := e.status(db).Writes
			e.snapshot("snap", "db")
			after := e.status(db).Writes
			e.figure("longest write of the database beside a snapshot", e.status(db).Gap)
			e.claimFrom("restored", class, k.size+33*mib, k.mode, "VolumeSnapshot", "snap")
			restored := e.run(pod("restored", "restored", block, "audit", 64*mib, 1))
			if got := e.status(restored).Writes; got < before || got > after+1 {
				t.Errorf("the snapshot holds %d records; %d were acknowledged before it, %d after", got, before, after)
			}
			if got, was := e.status(restored).Size, e.status(db).Size; got <= was {
				t.Errorf("restored to a larger volume there are %d bytes, at the source %d", got, was)
			}
			cloned := e.status(db).Writes
			e.claimFrom("clone", class, k.size, k.mode, "PersistentVolumeClaim", "db")
			clone := e.run(pod("clone", "clone", block, "audit", 64*mib, 1))
			if got := e.status(clone).Writes; got < cloned {
				t.Errorf("the clone holds %d records, %d were acknowledged before", got, cloned)
			}
			e.goesOn(db, e.status(db), 20)
			e.drop(snapshots, "snap")
			e.remove("db")
			e.remove("restored")
			again := e.run(pod("again", "restored", block, "audit", 64*mib, 1))
			if got := e.status(again).Writes; got < before {
				t.Errorf("after its snapshot is gone the restored volume holds %d records of %d", got, before)
			}
		})
	}
}

// TestGroupSnapshot: two volumes at one point in time. The writer of the second
// follows that of the first, so that it is never ahead of it.
func TestGroupSnapshot(t *testing.T) {
	t.Parallel()
	e := start(t)
	class := e.class("ext4")
	for i, name := range []string{"one", "two"} {
		spec := claimSpec(class, 128*mib, corev1.PersistentVolumeFilesystem, corev1.ReadWriteOnce)
		c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"group": "both"}}, Spec: spec}
		if _, err := client.CoreV1().PersistentVolumeClaims(e.ns).Create(e.ctx, c, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		e.run(pod(name, name, false, "ledger", 64*mib, i))
	}
	began := time.Now()
	_, err := objects.Resource(groups).Namespace(e.ns).Create(e.ctx, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "groupsnapshot.storage.k8s.io/v1", "kind": "VolumeGroupSnapshot", "metadata": map[string]any{"name": "both"},
		"spec": map[string]any{"volumeGroupSnapshotClassName": "vhdx",
			"source": map[string]any{"selector": map[string]any{"matchLabels": map[string]any{"group": "both"}}}},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	e.usable(groups, "both")
	e.took("group snapshot", began)
	e.await("two snapshots of the group", func() error {
		list, err := objects.Resource(snapshots).Namespace(e.ns).List(e.ctx, metav1.ListOptions{})
		if err == nil && len(list.Items) != 2 {
			err = fmt.Errorf("%d snapshots", len(list.Items))
		}
		return err
	})
	// Without its finalizer the snapshot-controller forgets the group with its
	// object, and it adds that only after the group can be used.
	e.await("finalizer of the group", func() error {
		g, err := objects.Resource(groups).Namespace(e.ns).Get(e.ctx, "both", metav1.GetOptions{})
		if err == nil && len(g.GetFinalizers()) == 0 {
			err = errors.New("there is none")
		}
		return err
	})
	e.drop(groups, "both")
}

// TestManySnapshots: 50 snapshots of a volume under verified I/O, deleted in
// random order while it goes on; one in 25 is restored and read.
func TestManySnapshots(t *testing.T) {
	t.Parallel()
	e := start(t)
	class := e.class("xfs")
	e.claim("db", class, 320*mib, corev1.PersistentVolumeFilesystem)
	db := e.run(pod("db", "db", false, "ledger", 128*mib, 1))
	const many = 50
	acknowledged := make([]int64, many)
	for i := range many {
		acknowledged[i] = e.status(db).Writes
		e.snapshot(fmt.Sprint("s", i), "db")
	}
	for i := 0; i < many; i += 25 {
		name := fmt.Sprint("r", i)
		e.claimFrom(name, class, 320*mib, corev1.PersistentVolumeFilesystem, "VolumeSnapshot", fmt.Sprint("s", i))
		p := e.run(pod(name, name, false, "audit", 128*mib, 1))
		if got := e.status(p).Writes; got < acknowledged[i] {
			t.Errorf("snapshot %d holds %d records of %d", i, got, acknowledged[i])
		}
		e.remove(name)
		if err := client.CoreV1().PersistentVolumeClaims(e.ns).Delete(e.ctx, name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, i := range rand.Perm(many) {
		if err := objects.Resource(snapshots).Namespace(e.ns).Delete(e.ctx, fmt.Sprint("s", i), metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	e.await("end of all snapshots", func() error {
		list, err := objects.Resource(snapshots).Namespace(e.ns).List(e.ctx, metav1.ListOptions{})
		if err == nil && len(list.Items) > 0 {
			err = fmt.Errorf("%d are there yet", len(list.Items))
		}
		return err
	})
	count := e.goesOn(db, e.status(db), 20).Writes
	e.remove("db")
	p := e.run(pod("last", "db", false, "audit", 128*mib, 1))
	if got := e.status(p).Writes; got < count {
		t.Errorf("the volume holds %d records of %d", got, count)
	}
}
