#!/usr/bin/env bash
# Has a real API server check every kustomization and sample: `kubectl apply
# --dry-run=server` with strict fields. It changes nothing but that it makes the
# namespace, without which no object in it can be checked, and removes it again
# if it made it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../deploy/kubernetes"

kubectl=${KUBECTL:-kubectl}
namespace=vhdx-csi

if ! $kubectl get namespace "$namespace" >/dev/null 2>&1; then
	$kubectl create namespace "$namespace"
	trap '$kubectl delete namespace "$namespace" --wait=false' EXIT
fi

failed=0
check() {
	echo "== $*"
	$kubectl apply --dry-run=server --validate=strict "$@" || failed=1
}
for dir in base overlays/*; do
	check -k "$dir"
done
for file in samples/*.yaml; do
	if [[ $file == samples/volumesnapshotclass.yaml ]] && ! $kubectl get crd volumesnapshotclasses.snapshot.storage.k8s.io >/dev/null 2>&1; then
		echo "== $file: not checked, the cluster has no snapshot CRDs"
		continue
	fi
	check -f "$file"
done
exit "$failed"
