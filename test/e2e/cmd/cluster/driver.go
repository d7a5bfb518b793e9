package main

import (
	"context"
	"os"
	"path/filepath"
	"time"
)

const (
	imagesFile = "images.tar"
	driverFile = "driver.yaml" // the rendered manifests, in the scratch directory
	namespace  = "vhdx-csi"
)

// snapshots gives the cluster what it has to have for snapshots, whatever the
// driver is.
func (in *inner) snapshots(ctx context.Context) error {
	for _, what := range [][]string{{"-k", filepath.Join(in.Bin, "crd")}, {"-f", filepath.Join(in.Bin, "cbt")}} {
		if err := in.kubectl(ctx, append([]string{"apply"}, what...)...); err != nil {
			return err
		}
	}
	if err := in.kubectl(ctx, "wait", "crd", "--all", "--for=condition=Established", "--timeout=60s"); err != nil {
		return err
	}
	return in.begin("snapshot-controller", in.program("snapshot-controller"), "--kubeconfig="+in.kubeconfig,
		"--feature-gates=CSIVolumeGroupSnapshot=true")
}

// install applies the driver's manifests and waits until kubelet has it.
func (in *inner) install(ctx context.Context) error {
	if err := in.kubectl(ctx, "apply", "-f", filepath.Join(in.Scratch, driverFile)); err != nil {
		return err
	}
	for _, sample := range []string{"storageclass.yaml", "volumesnapshotclass.yaml"} {
		if err := in.kubectl(ctx, "apply", "-f", filepath.Join(in.Repo, "deploy/kubernetes/samples", sample)); err != nil {
			return err
		}
	}
	// Not `rollout status`: it has no word for a DaemonSet with OnDelete.
	for what, ready := range map[string]string{"daemonset": "{.status.numberReady}=1", "deployment": "{.status.readyReplicas}=1"} {
		if err := in.await(ctx, what+"s of the driver are ready", 4*time.Minute, func(ctx context.Context) error {
			return in.kubectl(ctx, "wait", what, "--all", "-n", namespace, "--for=jsonpath="+ready, "--timeout=60s")
		}); err != nil {
			return in.explain(ctx, err)
		}
	}
	return in.await(ctx, "driver registered at the node", time.Minute, func(ctx context.Context) error {
		return in.kubectl(ctx, "wait", "csinode/"+nodeName, "--for=jsonpath={.spec.drivers[0].name}=csi.vhdx.dev", "--timeout=10s")
	})
}

// explain prints what the pods of the driver say.
func (in *inner) explain(ctx context.Context, err error) error {
	for _, args := range [][]string{{"get", "pods", "-A", "-o", "wide"}, {"get", "events", "-n", namespace, "--sort-by=.lastTimestamp"}} {
		if out, e := in.output(ctx, args...); e == nil {
			_, _ = os.Stderr.Write(out)
		}
	}
	return err
}
