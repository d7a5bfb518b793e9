package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/drain"
	"github.com/csi-vhdx/csi-driver-vhdx/internal/kubeapi"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/driver"
)

const (
	prestopName = "prestop"
	nodeNameEnv = "NODE_NAME"
)

const prestopLong = `The node plugin's pod runs this before it ends, as its preStop hook. If the node
is being emptied (cordoned, tainted by what removes nodes, or already gone from
the cluster) it waits until no volume of this driver is attached to the node:
the plugin is needed to unmount them. In every other case, a new version of the
plugin above all, it returns at once.

It asks the API server with the account of its pod, which has to be allowed to
get nodes and to list and watch volumeattachments.`

// prestopCommand is "vhdx-csi prestop".
func prestopCommand() *cobra.Command {
	var name string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   prestopName,
		Short: "Wait for this node's volumes to be detached, if the node is being emptied",
		Long:  prestopLong,
		Example: `  # In the node plugin's container; NODE_NAME comes from the pod
  vhdx-csi prestop --timeout=90s`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if name == "" {
				return usage(cmd, fmt.Errorf("--node is not given and %s is not set", nodeNameEnv))
			}
			if timeout <= 0 {
				return usage(cmd, fmt.Errorf("--timeout=%v: give more than 0", timeout))
			}
			return prestop(cmd.Context(), name, timeout)
		},
	}
	// An exec hook is run without a shell, and Kubernetes puts no variables
	// into its arguments.
	cmd.Flags().StringVar(&name, "node", os.Getenv(nodeNameEnv), "name of this node; by default the variable "+nodeNameEnv)
	cmd.Flags().DurationVar(&timeout, "timeout", 90*time.Second, "how long to wait at most; must leave the plugin enough of its pod's grace period to end in order")
	return cmd
}

func prestop(ctx context.Context, name string, timeout time.Duration) error {
	defer logBesideInit()()
	ctx, stop := untilSignal(ctx)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	log := klog.FromContext(ctx)
	api, err := kubeapi.InCluster()
	if err != nil {
		return err
	}
	w := drain.Waiter{API: api, Node: name, Driver: driver.Name, Note: func(text string) { log.Info("Before the stop", "note", text) }}
	if err := w.Wait(ctx); err != nil {
		log.Error(err, "Before the stop")
		return fmt.Errorf("wait for the volumes of node %s to be detached: %w", name, err)
	}
	return nil
}

// logBesideInit writes the log to where the container's first process writes
// its own, too: nobody sees what a hook prints. The function that it returns
// ends that.
func logBesideInit() (end func()) {
	own, err1 := os.Stat("/proc/self/exe")
	first, err2 := os.Stat("/proc/1/exe")
	if err1 != nil || err2 != nil || !os.SameFile(own, first) || os.Getpid() == 1 {
		return func() {}
	}
	// A pipe that nobody reads must not keep the hook, nor its pod, from ending.
	f, err := os.OpenFile("/proc/1/fd/2", os.O_WRONLY|os.O_APPEND|syscall.O_NONBLOCK, 0)
	if err != nil {
		return func() {}
	}
	klog.LogToStderr(false)
	klog.SetOutput(io.MultiWriter(os.Stderr, aside{f}))
	return func() {
		klog.Flush()
		klog.LogToStderr(true)
		f.Close()
	}
}

// aside is a log that may be lost.
type aside struct{ *os.File }

// asidePatience is how long a line waits for a reader.
const asidePatience = 100 * time.Millisecond

// Write always succeeds: klog ends the process when it cannot write.
func (a aside) Write(line []byte) (int, error) {
	_ = a.SetWriteDeadline(time.Now().Add(asidePatience)) // a plain file has none, and never blocks
	_, _ = a.File.Write(line)
	return len(line), nil
}
