package main

import (
	"maps"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
)

// TestKustomizations checks what a user applies.
func TestKustomizations(t *testing.T) {
	dirs := []string{"base"}
	for _, o := range overlays {
		dirs = append(dirs, "overlays/"+o)
	}
	for _, dir := range dirs {
		t.Run(dir, func(t *testing.T) { checkAll(t, decode(t, dir, kustomized(t, dir))) })
		for _, c := range componentNames() {
			t.Run(dir+" with "+c, func(t *testing.T) { checkAll(t, decode(t, dir, composed(t, dir, c))) })
		}
	}
}

// checkAll: the objects name each other rightly, and the plugin is started as
// it has to be.
func checkAll(t *testing.T, objects []runtime.Object) {
	t.Helper()
	checkBindings(t, objects)
	checkSelectors(t, objects)
	checkClaims(t, objects)
	for name, pod := range pods(objects) {
		checkPod(t, name, pod, objects)
		checkPluginFlags(t, name, pod)
	}
	checkDriverName(t, objects)
	checkCapacity(t, objects)
	checkKeeper(t, objects)
	checkControl(t, objects)
	checkNode(t, objects)
	checkRights(t, objects)
}

func templates(objects []runtime.Object) map[string]corev1.PodTemplateSpec {
	found := map[string]corev1.PodTemplateSpec{}
	for _, o := range objects {
		switch o := o.(type) {
		case *appsv1.Deployment:
			found[o.Name] = o.Spec.Template
		case *appsv1.DaemonSet:
			found[o.Name] = o.Spec.Template
		}
	}
	return found
}

func pods(objects []runtime.Object) map[string]corev1.PodSpec {
	found := map[string]corev1.PodSpec{}
	for name, template := range templates(objects) {
		found[name] = template.Spec
	}
	return found
}

// builtin roles are the cluster's own.
func builtin(role string) bool { return strings.HasPrefix(role, "ClusterRole/system:openshift:scc:") }

// checkBindings: each role is bound, each binding names a role and an account
// that exist, and nobody gets what no part of the driver needs.
func checkBindings(t *testing.T, objects []runtime.Object) {
	t.Helper()
	roles, accounts := map[string]bool{}, map[string]bool{}
	for _, o := range objects {
		switch o := o.(type) {
		case *rbacv1.Role:
			roles["Role/"+o.Name] = false
			checkRules(t, o.Name, o.Rules)
		case *rbacv1.ClusterRole:
			roles["ClusterRole/"+o.Name] = false
			checkRules(t, o.Name, o.Rules)
		case *corev1.ServiceAccount:
			accounts[o.Namespace+"/"+o.Name] = true
		}
	}
	bind := func(name string, ref rbacv1.RoleRef, subjects []rbacv1.Subject) {
		role := ref.Kind + "/" + ref.Name
		if _, ok := roles[role]; !ok && !builtin(role) {
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

func checkRules(t *testing.T, role string, rules []rbacv1.PolicyRule) {
	t.Helper()
	for _, r := range rules {
		for _, s := range slices.Concat(r.Verbs, r.Resources, r.APIGroups) {
			if s == "*" || s == "secrets" {
				t.Errorf("role %s has %q", role, s)
			}
		}
	}
}

// checkSelectors: whatever selects pods by labels finds some.
func checkSelectors(t *testing.T, objects []runtime.Object) {
	t.Helper()
	all := templates(objects)
	finds := func(name string, s labels.Selector) {
		for _, template := range all {
			if s.Matches(labels.Set(template.Labels)) {
				return
			}
		}
		t.Errorf("%s selects no pod: %v", name, s)
	}
	selector := func(name string, s *metav1.LabelSelector) {
		parsed, err := metav1.LabelSelectorAsSelector(s)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		finds(name, parsed)
	}
	for _, o := range objects {
		switch o := o.(type) {
		case *corev1.Service:
			finds("Service "+o.Name, labels.SelectorFromSet(o.Spec.Selector))
			for _, p := range o.Spec.Ports {
				if !hasPort(all, o.Spec.Selector, p.TargetPort.StrVal) {
					t.Errorf("Service %s: no selected pod has the port %q", o.Name, p.TargetPort.StrVal)
				}
			}
		case *policyv1.PodDisruptionBudget:
			selector("PodDisruptionBudget "+o.Name, o.Spec.Selector)
		case *networkingv1.NetworkPolicy:
			selector("NetworkPolicy "+o.Name, &o.Spec.PodSelector)
			for _, in := range o.Spec.Ingress {
				for _, p := range in.Ports {
					if !hasPort(all, o.Spec.PodSelector.MatchLabels, p.Port.StrVal) {
						t.Errorf("NetworkPolicy %s: no selected pod has the port %q", o.Name, p.Port.StrVal)
					}
				}
			}
		case *appsv1.Deployment:
			selector("Deployment "+o.Name, o.Spec.Selector)
		case *appsv1.DaemonSet:
			selector("DaemonSet "+o.Name, o.Spec.Selector)
		}
	}
}

func hasPort(all map[string]corev1.PodTemplateSpec, selector map[string]string, port string) bool {
	for _, template := range all {
		if labels.SelectorFromSet(selector).Matches(labels.Set(template.Labels)) {
			for _, c := range template.Spec.Containers {
				if slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.Name == port }) {
					return true
				}
			}
		}
	}
	return false
}

// checkClaims: a pool's PersistentVolume and its claim are made for each other,
// and kept when the claim goes.
func checkClaims(t *testing.T, objects []runtime.Object) {
	t.Helper()
	claims := map[string]*corev1.PersistentVolumeClaim{}
	for _, o := range objects {
		if c, ok := o.(*corev1.PersistentVolumeClaim); ok {
			claims[c.Namespace+"/"+c.Name] = c
		}
	}
	for _, o := range objects {
		v, ok := o.(*corev1.PersistentVolume)
		if !ok {
			continue
		}
		key := v.Spec.ClaimRef.Namespace + "/" + v.Spec.ClaimRef.Name
		c := claims[key]
		if c == nil || c.Spec.VolumeName != v.Name || !slices.Equal(c.Spec.AccessModes, v.Spec.AccessModes) ||
			c.Spec.StorageClassName == nil || *c.Spec.StorageClassName != v.Spec.StorageClassName {
			t.Errorf("PersistentVolume %s and claim %s do not fit: %+v", v.Name, key, c)
		}
		if v.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimRetain {
			t.Errorf("PersistentVolume %s: a deleted claim would erase the pool", v.Name)
		}
		delete(claims, key)
	}
	for key := range claims {
		t.Errorf("claim %s has no PersistentVolume", key)
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
	if pod.HostNetwork || pod.HostPID || pod.HostIPC || pod.ShareProcessNamespace != nil {
		t.Errorf("%s shares a namespace with the host, or between its containers", name)
	}
	volumes, numbers := map[string]bool{}, map[int32]string{}
	for _, v := range pod.Volumes {
		volumes[v.Name] = false
	}
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
		ports := map[string]bool{}
		for _, p := range c.Ports {
			ports[p.Name] = true
			if other := numbers[p.ContainerPort]; other != "" {
				t.Errorf("%s: %s and %s share port %d", name, other, c.Name, p.ContainerPort)
			}
			numbers[p.ContainerPort] = c.Name
		}
		for _, p := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe} {
			if p != nil && !ports[p.HTTPGet.Port.StrVal] {
				t.Errorf("%s/%s: the probe's port %q is not declared", name, c.Name, p.HTTPGet.Port.StrVal)
			}
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
		if len(c.Resources.Requests) == 0 && !strings.HasPrefix(c.Name, "make-pool-") {
			t.Errorf("%s/%s: the scheduler is not told what it needs", name, c.Name)
		}
	}
	for _, v := range slices.Sorted(maps.Keys(volumes)) {
		if !volumes[v] {
			t.Errorf("%s: no container mounts the volume %q", name, v)
		}
	}
}
