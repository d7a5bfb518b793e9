// Package manifests checks deploy/kubernetes: kustomize builds it, Kubernetes'
// own types decode it without an unknown field, and its objects name each other
// rightly. It does not run a cluster.
package manifests

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

const (
	deploy     = "../../deploy/kubernetes"
	driverName = "csi.vhdx.dev"
)

// decode reads every document strictly: an unknown or doubled field is an error.
func decode(t *testing.T, name string, content []byte) []runtime.Object {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		appsv1.AddToScheme, corev1.AddToScheme, rbacv1.AddToScheme, storagev1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	docs := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(content)))
	var objects []runtime.Object
	for {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			return objects
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		o, _, err := decoder.Decode(doc, nil, nil)
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, doc)
		}
		objects = append(objects, o)
	}
}

func build(t *testing.T, dir string) []runtime.Object {
	t.Helper()
	res, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join(deploy, dir))
	if err != nil {
		t.Fatalf("kustomize build %s: %v", dir, err)
	}
	content, err := res.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	return decode(t, dir, content)
}

func TestKustomizations(t *testing.T) {
	for _, dir := range []string{"base", "overlays/hostpath"} {
		t.Run(dir, func(t *testing.T) {
			objects := build(t, dir)
			checkBindings(t, objects)
			for name, pod := range pods(objects) {
				checkPod(t, name, pod, objects)
			}
		})
	}
}

func TestSamples(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(deploy, "samples/*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no samples: %v", err)
	}
	classes := map[string]bool{}
	claims := map[string]*corev1.PersistentVolumeClaim{}
	users := map[string]corev1.PodSpec{}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range decode(t, file, content) {
			switch o := o.(type) {
			case *storagev1.StorageClass:
				classes[o.Name] = true
				if o.Provisioner != driverName {
					t.Errorf("%s: provisioner %q, want %q", file, o.Provisioner, driverName)
				}
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

func pods(objects []runtime.Object) map[string]corev1.PodSpec {
	found := map[string]corev1.PodSpec{}
	for _, o := range objects {
		switch o := o.(type) {
		case *appsv1.Deployment:
			found[o.Name] = o.Spec.Template.Spec
		case *appsv1.DaemonSet:
			found[o.Name] = o.Spec.Template.Spec
		}
	}
	return found
}

// checkBindings: each role is bound, each binding names a role and an account
// that exist.
func checkBindings(t *testing.T, objects []runtime.Object) {
	t.Helper()
	roles, accounts := map[string]bool{}, map[string]bool{}
	for _, o := range objects {
		switch o := o.(type) {
		case *rbacv1.Role:
			roles["Role/"+o.Name] = false
		case *rbacv1.ClusterRole:
			roles["ClusterRole/"+o.Name] = false
		case *corev1.ServiceAccount:
			accounts[o.Namespace+"/"+o.Name] = true
		}
	}
	bind := func(name string, ref rbacv1.RoleRef, subjects []rbacv1.Subject) {
		role := ref.Kind + "/" + ref.Name
		if _, ok := roles[role]; !ok {
			t.Errorf("%s binds %s, which is not there", name, role)
		}
		roles[role] = true
		for _, s := range subjects {
			if !accounts[s.Namespace+"/"+s.Name] {
				t.Errorf("%s binds the account %s/%s, which is not there", name, s.Namespace, s.Name)
			}
		}
	}
	for _, o := range objects {
		switch o := o.(type) {
		case *rbacv1.RoleBinding:
			bind(o.Name, o.RoleRef, o.Subjects)
		case *rbacv1.ClusterRoleBinding:
			bind(o.Name, o.RoleRef, o.Subjects)
		}
	}
	for _, role := range slices.Sorted(maps.Keys(roles)) {
		if !roles[role] {
			t.Errorf("%s is bound to nobody", role)
		}
	}
}

func checkPod(t *testing.T, name string, pod corev1.PodSpec, objects []runtime.Object) {
	t.Helper()
	if !slices.ContainsFunc(objects, func(o runtime.Object) bool {
		a, ok := o.(*corev1.ServiceAccount)
		return ok && a.Name == pod.ServiceAccountName
	}) {
		t.Errorf("%s: account %q is not there", name, pod.ServiceAccountName)
	}
	volumes := map[string]bool{}
	for _, v := range pod.Volumes {
		volumes[v.Name] = false
	}
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
		ports := map[string]bool{}
		for _, p := range c.Ports {
			ports[p.Name] = true
		}
		if p := c.LivenessProbe; p != nil && !ports[p.HTTPGet.Port.StrVal] {
			t.Errorf("%s/%s: the probe's port %q is not declared", name, c.Name, p.HTTPGet.Port.StrVal)
		}
		for _, m := range c.VolumeMounts {
			if _, ok := volumes[m.Name]; !ok {
				t.Errorf("%s/%s mounts %q, which is no volume of the pod", name, c.Name, m.Name)
			}
			volumes[m.Name] = true
		}
		if strings.HasSuffix(c.Image, ":latest") && !strings.HasPrefix(c.Image, "csi-vhdx/") {
			t.Errorf("%s/%s: image %s has no fixed version", name, c.Name, c.Image)
		}
	}
	for _, v := range slices.Sorted(maps.Keys(volumes)) {
		if !volumes[v] {
			t.Errorf("%s: no container mounts the volume %q", name, v)
		}
	}
}

// TestDriverName: kubelet finds the plugin's socket, and Kubernetes the plugin,
// only when all of these agree.
func TestDriverName(t *testing.T) {
	objects := build(t, "base")
	named := false
	for _, o := range objects {
		if d, ok := o.(*storagev1.CSIDriver); ok {
			named = d.Name == driverName
		}
	}
	if !named {
		t.Errorf("no CSIDriver %s", driverName)
	}
	node := pods(objects)["vhdx-csi-node"]
	socket := "--kubelet-registration-path=/var/lib/kubelet/plugins/" + driverName + "/csi.sock"
	if !slices.ContainsFunc(node.Containers, func(c corev1.Container) bool { return slices.Contains(c.Args, socket) }) {
		t.Errorf("the registrar does not get %s", socket)
	}
	if !slices.ContainsFunc(node.Volumes, func(v corev1.Volume) bool {
		return v.HostPath != nil && v.HostPath.Path == "/var/lib/kubelet/plugins/"+driverName
	}) {
		t.Error("the plugin's directory is not the one that the registrar announces")
	}
}

// TestPluginFlags: every flag the manifests give is one that vhdx-csi has.
func TestPluginFlags(t *testing.T) {
	reference, err := os.ReadFile("../../docs/reference/vhdx-csi.md")
	if err != nil {
		t.Fatal(err)
	}
	for name, pod := range pods(build(t, "base")) {
		for _, c := range pod.Containers {
			if !strings.HasPrefix(c.Image, "csi-vhdx/vhdx-csi") {
				continue
			}
			for _, arg := range c.Args {
				flag, _, ok := strings.Cut(arg, "=")
				if !ok {
					flag = "vhdx-csi " + arg // a command
				}
				if !bytes.Contains(reference, []byte("`"+flag)) {
					t.Errorf("%s: flag %s is not in docs/reference/vhdx-csi.md", name, flag)
				}
			}
		}
	}
}

// TestKeeperSocket: the node plugin finds the keeper's socket, in a directory
// that both have from the host, and neither takes the other along.
func TestKeeperSocket(t *testing.T) {
	const socket = "--keeper-socket=/run/vhdx-csi/keeper.sock"
	all := pods(build(t, "base"))
	for _, name := range []string{"vhdx-csi-keeper", "vhdx-csi-node"} {
		pod := all[name]
		at := ""
		for _, c := range pod.Containers {
			if !slices.Contains(c.Args, socket) {
				continue
			}
			for _, m := range c.VolumeMounts {
				if m.MountPath == "/run/vhdx-csi" {
					at = m.Name
				}
			}
		}
		if !slices.ContainsFunc(pod.Volumes, func(v corev1.Volume) bool {
			return v.Name == at && v.HostPath != nil && v.HostPath.Path == "/run/vhdx-csi"
		}) {
			t.Errorf("%s: no container has %s in a directory of the host", name, socket)
		}
	}
	for _, c := range all["vhdx-csi-keeper"].Containers {
		if c.LivenessProbe != nil || !reflect.DeepEqual(c.Resources.Limits, c.Resources.Requests) {
			t.Errorf("the keeper's container %s can be killed for a probe or for memory", c.Name)
		}
	}
}
