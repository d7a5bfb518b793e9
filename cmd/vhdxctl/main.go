// Command vhdxctl works with VHDX images: see its help. It needs no Kubernetes,
// and root for attach alone.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/helper"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev/fuseloop"
)

// version is stamped by the build.
var version = "dev"

func main() {
	helper.RunIfHelper(fuseloop.Commands()...)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal asks for an orderly end, a second one ends at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}
