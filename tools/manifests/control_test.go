package main

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// checkControl: the node plugin listens on the port that its pod names, under the
// pod's own address, and no policy keeps the controller from it or lets anybody else.
func checkControl(t *testing.T, objects []runtime.Object) {
	t.Helper()
	node := container(pods(objects)["vhdx-csi-node"], "vhdx-csi")
	if node == nil {
		t.Fatal("no node plugin")
	}
	port := ""
	for _, p := range node.Ports {
		if p.Name == "control" {
			port = ":" + strconv.Itoa(int(p.ContainerPort))
		}
	}
	if port == "" || flag(node, "--control-address") != port {
		t.Errorf("the port named control is %q, the plugin listens at %q", port, flag(node, "--control-address"))
	}
	if name := strings.Trim(flag(node, "--control-advertise"), "$()"); fieldOf(node, name) != "status.podIP" {
		t.Errorf("variable %q is not the pod's address", name)
	}
	for _, o := range objects {
		p, ok := o.(*networkingv1.NetworkPolicy)
		if !ok {
			continue
		}
		for _, in := range p.Spec.Ingress {
			if opens(in.Ports) && (p.Name != "vhdx-csi-node" || len(in.From) != 1 || in.From[0].PodSelector.MatchLabels["app"] != "vhdx-csi-controller") {
				t.Errorf("%s lets %v in", p.Name, in.From)
			}
		}
		if p.Name == "vhdx-csi-node" && !slices.ContainsFunc(p.Spec.Ingress, func(in networkingv1.NetworkPolicyIngressRule) bool { return opens(in.Ports) }) {
			t.Errorf("%s keeps the controller out", p.Name)
		}
		if p.Name == "vhdx-csi-controller" && len(p.Spec.Egress) > 0 && !slices.ContainsFunc(p.Spec.Egress, func(out networkingv1.NetworkPolicyEgressRule) bool { return opens(out.Ports) }) {
			t.Errorf("%s keeps the controller in", p.Name)
		}
	}
}

func opens(ports []networkingv1.NetworkPolicyPort) bool {
	return slices.ContainsFunc(ports, func(p networkingv1.NetworkPolicyPort) bool { return p.Port != nil && p.Port.String() == "control" })
}

// fieldOf gives the field of the pod that a variable has.
func fieldOf(c *corev1.Container, name string) string {
	for _, e := range c.Env {
		if e.Name == name && e.ValueFrom != nil && e.ValueFrom.FieldRef != nil {
			return e.ValueFrom.FieldRef.FieldPath
		}
	}
	return ""
}
