package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/supervisor"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/driver"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/keeper"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/node"
)

const (
	workerName = "worker"
	keeperName = "keeper"
	// graceMargin is how much longer than its own limit a worker may take to
	// end before it is killed.
	graceMargin = 5 * time.Second
)

// start runs what serves no block device in this process, and all else in a
// worker that can be replaced.
func start(cmd *cobra.Command, o *options) error {
	if o.node() {
		return o.supervise(cmd.Context())
	}
	ctx, stop := untilSignal(cmd.Context())
	defer stop()
	return o.run(ctx, &heart{})
}

// supervise starts a worker, and another whenever it dies, and a keeper if it
// has been given none.
func (o *options) supervise(ctx context.Context) (err error) {
	log := klog.FromContext(ctx)
	becomeIOFlusher(log)
	lock, err := node.LockState(ctx, o.nodeStateDir())
	if err != nil {
		return err
	}
	defer lock.Close()
	if !o.keeperGiven {
		stop, err := o.maintainKeeper(ctx)
		if err != nil {
			return err
		}
		defer stop()
	}
	l, err := driver.Listen(o.endpoint)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	return supervisor.Run(ctx, supervisor.Options{
		Command:   append([]string{"/proc/self/exe", workerName}, os.Args[1:]...),
		Listener:  l,
		Heartbeat: o.hangTimeout,
		Grace:     o.shutdownTimeout + graceMargin,
		OnRestart: func(r supervisor.Restart) {
			log.Info("Worker ended, starts anew", "process", r.PID, "cause", r.Cause, "life", r.Life, "wait", r.Wait,
				"blamed", r.Culprits, "quarantined", r.Quarantined)
		},
		Note: func(text string) { log.Info("Supervisor", "note", text) },
	})
}

// maintainKeeper has a keeper run for as long as this process does, and longer
// while it holds a device.
func (o *options) maintainKeeper(ctx context.Context) (stop func(), err error) {
	log := klog.FromContext(ctx)
	if err := os.MkdirAll(filepath.Dir(o.keeperSocket), 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of the keeper's socket: %w", err)
	}
	end, err := keeper.Maintain(ctx, keeper.Maintenance{
		Socket:  o.keeperSocket,
		Command: []string{"/proc/self/exe", keeperName, "--keeper-socket=" + o.keeperSocket, "--idle=" + keeperIdle.String()},
		Build:   version,
		Note:    func(text string) { log.Info("Keeper", "note", text) },
	})
	if err != nil {
		return nil, fmt.Errorf("have a keeper: %w", err)
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), graceMargin)
		defer cancel()
		if err := end(ctx); err != nil {
			log.Info("The keeper stays", "reason", err.Error())
		}
	}, nil
}

// work is a worker's whole life. Without a supervisor it does as well, once.
func work(cmd *cobra.Command, o *options) error {
	rename("vhdx-worker")
	link, err := supervisor.Worker()
	if err != nil && !errors.Is(err, supervisor.ErrNotSupervised) {
		return err
	}
	if link == nil && o.node() {
		becomeIOFlusher(klog.FromContext(cmd.Context()))
	}
	h := &heart{link: link}
	// It beats for as long as the process lives, the orderly end included.
	go link.BeatWhile(context.WithoutCancel(cmd.Context()), h.alive)
	if link != nil {
		return o.run(untilAsked(cmd.Context()), h)
	}
	ctx, stop := untilSignal(cmd.Context())
	defer stop()
	return o.run(ctx, h)
}

// untilAsked gives a context that ends when the supervisor asks for an orderly
// end. It passes signals on, and may have two of them for one wish, the second
// while this process is ending already: to lose patience is its business.
func untilAsked(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGTERM, os.Interrupt)
	go func() {
		<-asked
		cancel()
	}()
	return ctx
}

// listen gives the supervisor's listener, or a new one.
func (o *options) listen(link *supervisor.Link) (net.Listener, error) {
	l, err := link.Listener()
	if errors.Is(err, supervisor.ErrNoListener) {
		return driver.Listen(o.endpoint)
	}
	return l, err
}

// rename sets the name that tools show for this process: as it starts from
// /proc/self/exe, that would be "exe".
func rename(name string) {
	_ = os.WriteFile(fmt.Sprintf("/proc/self/task/%d/comm", os.Getpid()), []byte(name), 0) // for people only
}
