package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/supervisor"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev/fuseloop"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/driver"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/node"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// run joins the parts, serves until the context ends, and takes them apart.
func (o *options) run(ctx context.Context, h *heart) (err error) {
	if err := limitMemory(o.memoryLimit); err != nil {
		return err
	}
	set, pools, err := o.openPools(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, set.Close()) }()
	ob, err := o.observe(ctx)
	if err != nil {
		return err
	}
	defer func() { ob.end() }()
	ob.watchPools(ctx, o, set)

	c := driver.Config{Version: version, WorkTimeout: o.workTimeout, Observe: ob.call, Stats: ob.traces}
	c.Health = driver.Health{Pools: set, Figures: ob.pools.Figures}
	networked := o.networked(pools)
	var m *node.Manager
	deaf := func(context.Context) error { return nil }
	if o.node() {
		if m, deaf, err = o.startNode(ctx, set, h, ob, networked); errors.Is(err, errEnded) {
			klog.FromContext(ctx).Info("Stopping", "reason", err.Error())
			return nil
		}
		if err != nil {
			return err
		}
		m.Watch(ctx)
		c.Health.Here = m
		c.Node = &driver.NodeService{Mounts: m, Usage: m, ID: o.nodeID, Pools: pools, MaxVolumes: o.maxVolumes}
	}
	if o.controller() {
		ob.metrics.Controller()
		nodes, err := o.newAsker(ctx, set, m, networked)
		if err != nil {
			return err
		}
		defer nodes.stop()
		c.Health.Nodes = nodes
		t := newTender(set, nodes.Follow, ob.metrics.Tended)
		c.Controller = &driver.Controller{
			Volumes: set, Attachments: set, Snapshots: set, Groups: set, Maps: set, Holders: nodes, Pools: pools, Untended: t.add,
		}
		defer collect(ctx, set)()
		defer t.run(ctx)()
	}
	ob.run(ctx, o, m)
	serveErr := o.serve(ctx, c, h.link)
	if m == nil {
		return serveErr
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), o.shutdownTimeout/2)
	defer cancel()
	return errors.Join(serveErr, deaf(last), m.Shutdown(last))
}

// collectEvery is how often the controller finishes what others began and did
// not end: a creation or deletion cut short.
const collectEvery = 5 * time.Minute

// collect has the pools tidied up now and then. The function that it returns
// ends that and waits until it has ended.
func collect(ctx context.Context, set *pool.Set) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			log := klog.FromContext(ctx)
			done, err := set.Collect(ctx)
			if err != nil && ctx.Err() == nil {
				log.Error(err, "Collect what is unfinished in the pools")
			} else if done.Operations+done.Temporary+done.Controllers > 0 {
				log.Info("Collected what was left in the pools", "operations", done.Operations, "temporary", done.Temporary, "controllers", done.Controllers)
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(collectEvery):
			}
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}

// startNode makes the node manager, settles what an earlier process left, and
// tells the pools about this node. deaf ends its service for controllers.
func (o *options) startNode(ctx context.Context, set *pool.Set, h *heart, ob *observer, networked bool) (m *node.Manager, deaf func(context.Context) error, err error) {
	attacher, err := o.newAttacher(klog.FromContext(ctx), h.link)
	if err != nil {
		return nil, nil, err
	}
	c := node.Config{
		NodeID: o.nodeID, StateDir: o.nodeStateDir(), StateLocked: h.link != nil,
		Volumes: set, Attacher: attacher, Guard: h.link, Replayed: ob.metrics.Replayed,
	}
	if h.link != nil || o.keeperGiven {
		k, err := o.dialKeeper(ctx, ob)
		if err != nil {
			return nil, nil, err
		}
		c.Keeper = k
	}
	m, err = node.New(c) //nolint:contextcheck // it waits for nothing but its own directory
	if err != nil {
		return nil, nil, fmt.Errorf("start the node service: %w", err)
	}
	h.beatsFor(m)
	ob.metrics.Node(m.Volumes, h.link.Tally)
	began := supervisor.SinceBoot()
	recovered, err := m.Recover(ctx) // it logs what it finds
	if err != nil {
		return nil, nil, fmt.Errorf("settle what an earlier process left: %w", err)
	}
	ob.started(h.link.History(), began, recovered)
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, nil, fmt.Errorf("read the boot id: %w", err)
	}
	self := pool.Node{ID: o.nodeID, BootID: strings.TrimSpace(string(boot)), Seen: time.Now(), MaxVolumes: o.maxVolumes}
	if networked {
		deaf, err = o.answerControllers(ctx, set, m, self)
		return m, deaf, err
	}
	register(ctx, set, self)
	return m, func(context.Context) error { return nil }, nil
}

// registerRetry is how long after a failure a node is registered again.
const registerRetry = 10 * time.Second

// register makes the node known in the pools. A share that is full or does not
// answer must not keep the volumes of the others from being served: what fails
// or takes long goes on beside them.
func register(ctx context.Context, set *pool.Set, self pool.Node) {
	log := klog.FromContext(ctx)
	first := make(chan struct{})
	go func() {
		for try := 0; ; try++ {
			err := set.RegisterNode(ctx, self)
			if err != nil && try == 0 {
				log.Error(err, "Node is not registered in every pool yet; tried again", "node", self.ID)
			}
			if try == 0 {
				close(first)
			}
			if err == nil {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(registerRetry):
			}
		}
	}()
	select {
	case <-first:
	case <-time.After(sharePatience):
	case <-ctx.Done():
	}
}

// The values of --backend.
const (
	backendAuto     = "auto"
	backendFuseloop = "fuseloop"
)

func (o *options) newAttacher(log klog.Logger, link *supervisor.Link) (blockdev.Attacher, error) {
	switch o.backend {
	case backendAuto, backendFuseloop:
		return fuseloop.New(fuseloop.Options{
			AllowWithoutResend: o.allowDeviceLoss,
			Crashing:           link.Accuse,
			Note: func(id, text string) {
				log.Info("Block device is not at its best", "volume", id, "backend", fuseloop.Name, "reason", text)
			},
		}), nil
	}
	return nil, fmt.Errorf("--backend=%s: there is auto and fuseloop", o.backend)
}

// serve answers calls until the context ends or the socket fails.
func (o *options) serve(ctx context.Context, c driver.Config, link *supervisor.Link) error {
	log := klog.FromContext(ctx)
	s, err := driver.New(ctx, c)
	if err != nil {
		return err
	}
	l, err := o.listen(link)
	if err != nil {
		return err
	}
	log.Info("Serving", "driver", driver.Name, "version", version, "mode", o.mode, "node", o.nodeID, "endpoint", o.endpoint)
	ended := make(chan error, 1)
	go func(l net.Listener) { ended <- s.Serve(l) }(l)
	link.Ready()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	log.Info("Stopping")
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), o.shutdownTimeout/2)
	defer cancel()
	return errors.Join(s.Stop(drain), <-ended)
}
