package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/keeper"
)

const (
	keeperSocketName = "keeper.sock"
	keeperUsage      = "Unix socket of the keeper, the process that holds this node's devices while the plugin restarts"
	// keeperIdle is how long a keeper that the plugin has started outlives its
	// last use.
	keeperIdle = 10 * time.Second
	// keeperRetry is how often a plugin without a keeper looks for one.
	keeperRetry = 100 * time.Millisecond
)

const keeperLong = `The keeper holds the descriptors of this node's block devices, and what was
written to them and is not in their image files yet, while the plugin that
serves them dies and starts again. It does nothing else.

With --mode=all or node and no --keeper-socket the plugin starts one itself,
which lives as long as their container or service. In a cluster it runs on its
own, so that neither a new version of the plugin nor an out-of-memory kill of
its container takes it along.

It ends on SIGTERM if it holds nothing. Otherwise it says which volumes would
be cut off, and goes on: unstage them first, or use "vhdx-csi keeper stop
--force".`

// keeperCommand is "vhdx-csi keeper" with what it has below.
func keeperCommand() *cobra.Command {
	socket := filepath.Join(defaultStateDir, keeperSocketName)
	var idle time.Duration
	cmd := &cobra.Command{
		Use:   keeperName,
		Short: "Hold this node's devices while the plugin restarts",
		Long:  keeperLong,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return keep(cmd.Context(), socket, idle)
		},
	}
	cmd.PersistentFlags().StringVar(&socket, "keeper-socket", socket, keeperUsage)
	cmd.Flags().DurationVar(&idle, "idle", 0, "end after so long without use; 0 is never")
	_ = cmd.Flags().MarkHidden("idle") // there is such a flag

	var force bool
	stop := &cobra.Command{
		Use:   "stop",
		Short: "End the keeper, if it holds nothing",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withKeeper(cmd.Context(), socket, func(c *keeper.Client) error { return c.Stop(cmd.Context(), force) })
		},
	}
	stop.Flags().BoolVar(&force, "force", false, "end it even if that cuts off volumes and loses writes they were promised")
	status := &cobra.Command{
		Use:   "status",
		Short: "Show what the keeper holds",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withKeeper(cmd.Context(), socket, func(c *keeper.Client) error { return showKeeper(cmd, c) })
		},
	}
	cmd.AddCommand(stop, status)
	return cmd
}

// keep is the keeper's whole life.
func keep(ctx context.Context, socket string, idle time.Duration) error {
	log := klog.FromContext(ctx)
	becomeIOFlusher(log) // by itself: one that the plugin has started is that already
	rename("vhdx-keeper")
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, os.Interrupt)
	stop := make(chan struct{})
	go func() {
		for range signals {
			stop <- struct{}{}
		}
	}()
	log.Info("Keeping", "version", version, "socket", socket)
	err := keeper.Serve(ctx, keeper.Options{
		Socket: socket, Build: version, Stop: stop, Idle: idle,
		Note: func(text string) { log.Info("Keeper", "note", text) },
	})
	if err == nil {
		log.Info("Keeper ends")
	}
	return err
}

func withKeeper(ctx context.Context, socket string, do func(c *keeper.Client) error) error {
	c, err := keeper.Dialer{Socket: socket, Build: version}.Dial(ctx)
	if err != nil {
		return err
	}
	err = do(c)
	_ = c.Close() // nothing has been put
	return err
}

func showKeeper(cmd *cobra.Command, c *keeper.Client) error {
	s, err := c.Status(cmd.Context())
	if err != nil {
		return err
	}
	items, err := c.List(cmd.Context())
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "process\t%d (%s), since %s\n", s.PID, s.Build, s.Started.Format(time.RFC3339))
	fmt.Fprintf(w, "volumes\t%d of %d\n", s.Items, s.MaxItems)
	fmt.Fprintf(w, "descriptors\t%d of %d\n", s.Files, s.MaxFiles)
	fmt.Fprintf(w, "journals\t%d of %d bytes\n", s.Bytes, s.MaxBytes)
	fmt.Fprintf(w, "clients\t%d\n", s.Clients)
	for _, text := range s.Exposed {
		fmt.Fprintf(w, "exposed\t%s\n", text)
	}
	for _, i := range items {
		fmt.Fprintf(w, "holds\t%s, generation %d\n", i.ID, i.Generation)
	}
	return w.Flush()
}

// errEnded: told to end before there was a keeper. Nothing has been begun.
var errEnded = errors.New("ended while waiting for the keeper")

// dialKeeper connects a worker to the keeper. From then on the keeper does
// nothing any more that an earlier worker of this node has asked for.
//
// It waits for a keeper: after a boot the two start side by side, and a plugin
// that ended instead would be held back, by whoever starts it, for longer and
// longer while its volumes wait.
func (o *options) dialKeeper(ctx context.Context, ob *observer) (*keeper.Client, error) {
	log := klog.FromContext(ctx)
	d := keeper.Dialer{
		Socket: o.keeperSocket, Build: version, Owner: "node " + o.stateDir,
		Lost: func(err error) {
			ob.keeperLost(err)
			log.Error(err, "The keeper has gone: until there is one again, the death of this process costs its devices")
		},
		Restored: func(items int, err error) {
			ob.keeperRestored(items, err)
			if err != nil {
				log.Error(err, "A new keeper does not hold everything", "volumes", items)
				return
			}
			log.Info("A new keeper holds everything", "volumes", items)
		},
	}
	for said := false; ; said = true {
		c, err := d.Dial(ctx)
		if err == nil {
			ob.metrics.Keeper(true)
			return c, nil
		}
		if !errors.Is(err, keeper.ErrUnavailable) {
			return nil, fmt.Errorf("connect to the keeper: %w", err)
		}
		if !said {
			ob.metrics.Keeper(false)
			log.Info("Waiting for the keeper; until it is there no volume is served", "socket", o.keeperSocket, "reason", err.Error())
		}
		select {
		case <-ctx.Done():
			return nil, errEnded
		case <-time.After(keeperRetry):
		}
	}
}
