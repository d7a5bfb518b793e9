package main

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

func container(pod corev1.PodSpec, name string) *corev1.Container {
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
		if c.Name == name {
			return &c
		}
	}
	return nil
}

// flag gives the value of a container's flag.
func flag(c *corev1.Container, name string) string {
	for _, arg := range c.Args {
		if v, ok := strings.CutPrefix(arg, name+"="); ok {
			return v
		}
	}
	return ""
}

// hostDir gives the host's directory that a container sees at a path.
func hostDir(pod corev1.PodSpec, c *corev1.Container, path string) string {
	for _, m := range c.VolumeMounts {
		if m.MountPath != path {
			continue
		}
		for _, v := range pod.Volumes {
			if v.Name == m.Name && v.HostPath != nil {
				return v.HostPath.Path
			}
		}
	}
	return ""
}

// checkDriverName: kubelet finds the plugin's socket, and Kubernetes the plugin,
// only when all of these agree.
func checkDriverName(t *testing.T, objects []runtime.Object) {
	t.Helper()
	named := false
	for _, o := range objects {
		if d, ok := o.(*storagev1.CSIDriver); ok {
			named = d.Name == driverName
			s := d.Spec
			if !*s.AttachRequired || !*s.StorageCapacity || !*s.SELinuxMount || *s.FSGroupPolicy != storagev1.FileFSGroupPolicy {
				t.Errorf("CSIDriver: %+v", s)
			}
		}
	}
	if !named {
		t.Errorf("no CSIDriver %s", driverName)
	}
	node := pods(objects)["vhdx-csi-node"]
	registrar, plugin := container(node, "node-driver-registrar"), container(node, "vhdx-csi")
	announced := flag(registrar, "--kubelet-registration-path")
	if dir := hostDir(node, registrar, "/csi"); announced != dir+"/csi.sock" || filepath.Base(dir) != driverName || hostDir(node, plugin, "/csi") != dir {
		t.Errorf("the registrar announces %s, the socket is in %s of the host", announced, dir)
	}
	kubelet := filepath.Dir(filepath.Dir(filepath.Dir(announced)))
	if hostDir(node, plugin, kubelet) != kubelet || hostDir(node, registrar, "/registration") != kubelet+"/plugins_registry" {
		t.Errorf("the plugin does not see kubelet's directory %s under its own name", kubelet)
	}
}

// checkCapacity: the provisioner publishes what the CSIDriver object has the
// scheduler ask for, and may do so.
func checkCapacity(t *testing.T, objects []runtime.Object) {
	t.Helper()
	controller := pods(objects)["vhdx-csi-controller"]
	provisioner, plugin := container(controller, "csi-provisioner"), container(controller, "vhdx-csi")
	if !slices.Contains(provisioner.Args, "--enable-capacity") || flag(provisioner, "--capacity-ownerref-level") != "2" {
		t.Errorf("the provisioner publishes no capacity that goes with its Deployment: %q", provisioner.Args)
	}
	if flag(plugin, "--node-id") != "$(NODE_NAME)" {
		t.Errorf("the controller does not know on which node a local pool is: %q", plugin.Args)
	}
	for _, o := range objects {
		if r, ok := o.(*rbacv1.Role); ok && r.Name == "vhdx-csi-provisioner" && slices.ContainsFunc(r.Rules, func(rule rbacv1.PolicyRule) bool {
			return slices.Contains(rule.Resources, "csistoragecapacities") && slices.Contains(rule.Verbs, "create")
		}) {
			return
		}
	}
	t.Error("the provisioner may not write CSIStorageCapacity objects")
}

// checkPluginFlags: every flag that the manifests give is one that vhdx-csi has.
func checkPluginFlags(t *testing.T, name string, pod corev1.PodSpec) {
	t.Helper()
	page, err := os.ReadFile(root + "/docs/reference/vhdx-csi.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range pod.Containers {
		if c.Name != "vhdx-csi" && c.Name != "keeper" {
			continue
		}
		if len(c.Command) > 0 {
			t.Errorf("%s/%s: the image's entry point is the supervisor; a command takes its place", name, c.Name)
		}
		for _, arg := range c.Args {
			flag, _, ok := strings.Cut(arg, "=")
			if !ok && !strings.HasPrefix(arg, "-") {
				flag = "vhdx-csi " + arg // a command
			}
			if !bytes.Contains(page, []byte("`"+flag)) {
				t.Errorf("%s: flag %s is not in docs/reference/vhdx-csi.md", name, flag)
			}
		}
	}
}

// checkKeeper: the node plugin finds the keeper's socket, in a directory that
// both have from the host, and neither takes the other along.
func checkKeeper(t *testing.T, objects []runtime.Object) {
	t.Helper()
	all := pods(objects)
	keeper, node := container(all["vhdx-csi-keeper"], "keeper"), container(all["vhdx-csi-node"], "vhdx-csi")
	socket := flag(keeper, "--keeper-socket")
	dir := filepath.Dir(socket)
	if flag(node, "--keeper-socket") != socket || hostDir(all["vhdx-csi-keeper"], keeper, dir) != dir || hostDir(all["vhdx-csi-node"], node, dir) != dir {
		t.Errorf("keeper and node plugin do not share %s of the host", socket)
	}
	for _, c := range all["vhdx-csi-keeper"].Containers {
		if c.LivenessProbe != nil || !reflect.DeepEqual(c.Resources.Limits, c.Resources.Requests) || len(c.Resources.Limits) != 2 {
			t.Errorf("the keeper's container %s can be killed for a probe or for memory", c.Name)
		}
	}
	for _, o := range objects {
		if d, ok := o.(*appsv1.DaemonSet); ok && d.Name == "vhdx-csi-keeper" && d.Spec.UpdateStrategy.Type != appsv1.OnDeleteDaemonSetStrategyType {
			t.Error("an update of the manifests takes the keepers")
		}
	}
}

// checkNode: nothing kills the plugin, and when its pod ends there is time for
// all that has to happen.
func checkNode(t *testing.T, objects []runtime.Object) {
	t.Helper()
	node := pods(objects)["vhdx-csi-node"]
	plugin, registrar := container(node, "vhdx-csi"), container(node, "node-driver-registrar")
	if plugin.LivenessProbe != nil || plugin.StartupProbe != nil {
		t.Error("a probe kills the node plugin")
	}
	if registrar.RestartPolicy == nil || *registrar.RestartPolicy != corev1.ContainerRestartPolicyAlways {
		t.Error("the registrar ends before the plugin, and nothing can be unmounted meanwhile")
	}
	wait := time.Duration(0)
	if hook := plugin.Lifecycle; hook != nil {
		command := hook.PreStop.Exec.Command
		given, _ := strings.CutPrefix(command[len(command)-1], "--timeout=")
		var err error
		if wait, err = time.ParseDuration(given); err != nil || command[1] != "prestop" {
			t.Errorf("preStop %q: %v", command, err)
		}
		if image, err := os.ReadFile(root + "/Dockerfile"); err != nil || !bytes.Contains(image, []byte(`ENTRYPOINT ["`+command[0]+`"]`)) {
			t.Errorf("preStop runs %s, which is not what the image runs: %v", command[0], err)
		}
	}
	end, err := time.ParseDuration(flag(plugin, "--shutdown-timeout"))
	if err != nil {
		t.Fatal(err)
	}
	const supervisor = 5 * time.Second // graceMargin of cmd/vhdx-csi
	if grace := time.Duration(*node.TerminationGracePeriodSeconds) * time.Second; grace <= wait+end+supervisor {
		t.Errorf("grace period %v, of which the hook may take %v, the end %v and the supervisor %v", grace, wait, end, supervisor)
	}
}

// rights are what a ClusterRole allows, by resource.
func rights(objects []runtime.Object, role string) map[string][]string {
	found := map[string][]string{}
	for _, o := range objects {
		if r, ok := o.(*rbacv1.ClusterRole); ok && r.Name == role {
			for _, rule := range r.Rules {
				for _, resource := range rule.Resources {
					found[resource] = append(found[resource], rule.Verbs...)
				}
			}
		}
	}
	return found
}

// checkRights: hook and Events may ask what they ask, and no more, with a token
// that only their container has.
func checkRights(t *testing.T, objects []runtime.Object) {
	t.Helper()
	all := pods(objects)
	node := all["vhdx-csi-node"]
	plugin := container(node, "vhdx-csi")
	needs, controllerNeeds := map[string][]string{}, map[string][]string{}
	if plugin.Lifecycle != nil {
		needs["nodes"] = []string{"get"}
		needs["volumeattachments"] = []string{"list", "watch"}
	}
	if flag(plugin, "--events") == "on" {
		needs["events"] = []string{"create", "patch"}
		needs["volumeattachments"] = append(needs["volumeattachments"], "get")
		needs["persistentvolumes"] = []string{"get"}
		controllerNeeds = map[string][]string{"events": {"create", "patch"}, "csidrivers": {"get"}}
	}
	if d := cmp.Diff(needs, rights(objects, "vhdx-csi-node")); d != "" {
		t.Errorf("the node plugin's role (-needed +given):\n%s", d)
	}
	if d := cmp.Diff(controllerNeeds, rights(objects, "vhdx-csi-controller")); d != "" {
		t.Errorf("the controller's role (-needed +given):\n%s", d)
	}
	if *node.AutomountServiceAccountToken {
		t.Error("every container of the node plugin gets the token")
	}
	for _, c := range slices.Concat(node.InitContainers, node.Containers) {
		has := slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool {
			return m.MountPath == "/var/run/secrets/kubernetes.io/serviceaccount"
		})
		if has != (c.Name == "vhdx-csi" && len(needs) > 0) {
			t.Errorf("container %s: has the token: %v", c.Name, has)
		}
	}
}

// TestSidecarsFitTheDriver: the snapshotter is on exactly when the driver can do
// what it asks for.
func TestSidecarsFitTheDriver(t *testing.T) {
	files, err := filepath.Glob(root + "/pkg/driver/*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("no driver: %v", err)
	}
	advertised := false
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		advertised = advertised || !strings.HasSuffix(f, "_test.go") && bytes.Contains(text, []byte("RPC_CREATE_DELETE_SNAPSHOT"))
	}
	controller := pods(decode(t, "base", kustomized(t, "base")))["vhdx-csi-controller"]
	if on := container(controller, "csi-snapshotter") != nil; on != advertised {
		t.Errorf("the driver advertises CREATE_DELETE_SNAPSHOT: %v; the snapshotter runs: %v; see sidecars.snapshotter.enabled", advertised, on)
	}
}
