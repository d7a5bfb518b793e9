// Package e2e tests the driver in a real Kubernetes, installed from
// deploy/kubernetes with RBAC on. `make e2e` starts the cluster and runs the
// tests in it; they are on the cluster's node, as root, in its process and
// mount namespaces, so that they see its processes, mounts and devices too.
//
// This module is apart from the driver's, which must not carry Kubernetes.
package e2e
