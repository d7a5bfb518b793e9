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
	"github.com/csi-vhdx/csi-driver-vhdx/internal/supervisor"
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

	cmd := command(start)
	worker := command(work)
	worker.Use, worker.Hidden = workerName+" [flags]", true
	cmd.AddCommand(worker, keeperCommand(), prestopCommand())
	err := cmd.ExecuteContext(klog.NewContext(context.Background(), klog.Background()))
	if err != nil && !errors.Is(err, errUsage) {
		klog.Background().Error(err, "Stopped")
	}
	klog.Flush()
	if x, ok := errors.AsType[*supervisor.ExitError](err); ok {
		os.Exit(x.Code)
	}
	if err != nil {
		os.Exit(1)
	}
}

// untilSignal gives a context that ends when an orderly end is asked for. A
// second signal ends the process at once.
func untilSignal(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}
