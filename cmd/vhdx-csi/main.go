// Command vhdx-csi is the CSI plugin: it keeps volumes as VHDX files in shared
// directories and serves them to its node as block devices.
package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/helper"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev/fuseloop"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/node"
)

// version is stamped by the build.
var version = "dev"

func main() {
	helper.RunIfHelper(slices.Concat(fuseloop.Commands(), node.Commands())...)

	// The group shares the pools and the socket: the controller and its
	// sidecars need not be root.
	unix.Umask(0o007)

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	// The first signal asks for an orderly end, a second one ends at once.
	context.AfterFunc(ctx, stop)
	err := command(run).ExecuteContext(klog.NewContext(ctx, klog.Background()))
	if err != nil && !errors.Is(err, errUsage) {
		klog.Background().Error(err, "Stopped")
	}
	klog.Flush()
	if err != nil {
		os.Exit(1)
	}
}
