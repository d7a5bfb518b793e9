package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/klog/v2"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control/wire"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/driver"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/node"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// checkControl checks where controllers reach this node.
func (o *options) checkControl() error {
	if _, port, err := net.SplitHostPort(o.controlAddress); err != nil || port == "" {
		return fmt.Errorf("--control-address=%s: give host:port, or :port for all addresses of this host", o.controlAddress)
	}
	if o.controlAdvertise != "" {
		if _, err := wire.Endpoints(&net.TCPAddr{IP: net.IPv6zero, Port: 1}, o.controlAdvertise); err != nil {
			return fmt.Errorf("--control-advertise=%s: %w", o.controlAdvertise, err)
		}
	}
	return nil
}

// networked: another process may have to do with the volumes of these pools.
func (o *options) networked(pools []driver.Pool) bool {
	return o.mode != modeAll || slices.ContainsFunc(pools, func(p driver.Pool) bool { return p.OnlyOn == "" })
}

// asker is the controller's way to the nodes.
type asker struct {
	control.Router
	stop func()
}

// withdrawTime bounds how long an orderly end waits for a share to forget this
// process. What it does not forget, it does when the certificate ends.
const withdrawTime = 2 * time.Second

// newAsker makes the way to the holder of a volume: in this process to m, which
// may be nil, and over the network if there is one.
func (o *options) newAsker(ctx context.Context, set *pool.Set, m *node.Manager, networked bool) (*asker, error) {
	a := &asker{Router: control.Router{Find: set}, stop: func() {}}
	if m != nil {
		a.Node, a.Local = o.nodeID, m
	}
	if !networked {
		return a, nil
	}
	host, _ := os.Hostname() // for people
	id, err := wire.NewIdentity(host)
	if err != nil {
		return nil, fmt.Errorf("make this controller's identity: %w", err)
	}
	client := wire.NewClient(wire.ClientOptions{Identity: id, Nodes: set})
	a.Remote = client
	ctx, cancel := context.WithCancel(ctx)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		id.Keep(ctx, wire.Publication{
			Publish: func(ctx context.Context, all []pool.Certificate) error { return introduce(ctx, set, host, all) },
			Failed:  once(klog.FromContext(ctx), "Controller is not known in every pool yet, and cannot ask the nodes; tried again"),
			Every:   collectEvery,
		})
		for _, c := range id.Certificates() {
			set.WithdrawController(context.WithoutCancel(ctx), c.SHA256) //nolint:errcheck // it ends by itself
		}
	}()
	a.stop = func() {
		cancel()
		client.Close()
		select {
		case <-gone:
		case <-time.After(withdrawTime):
		}
	}
	return a, nil
}

// introduce makes a controller's certificates known; the one in use last, which
// is the one that pools get that come later.
func introduce(ctx context.Context, set *pool.Set, host string, all []pool.Certificate) error {
	var errs []error
	for _, c := range slices.Backward(all) {
		errs = append(errs, set.RegisterController(ctx, pool.Controller{Certificate: c, Name: host, Since: time.Now()}))
	}
	return errors.Join(errs...)
}

// once logs a failure that comes again and again once.
func once(log klog.Logger, text string) func(error) {
	var first sync.Once
	return func(err error) { first.Do(func() { log.Error(err, text) }) }
}

// answerControllers registers the node and lets controllers ask it. Where it
// cannot listen it registers all the same, and tries again: no volume waits for
// that (I-CTL-7). The function that it returns ends it.
func (o *options) answerControllers(ctx context.Context, set *pool.Set, h control.Holder, self pool.Node) (stop func(context.Context) error, err error) {
	id, err := wire.NewIdentity(self.ID)
	if err != nil {
		return nil, fmt.Errorf("make this node's identity: %w", err)
	}
	log := klog.FromContext(ctx)
	s := wire.NewServer(wire.ServerOptions{ //nolint:contextcheck // what it does is short, or may not be cut short
		Identity: id, Pools: set, Holder: h, Status: driver.Status,
		Refused: refusals(log),
		Failed:  func(err error) { log.Error(err, "A call of a controller failed") },
	})
	l, where, err := o.listenControl(ctx)
	if err != nil {
		log.Error(err, "Controllers cannot ask this node yet; tried again")
		register(ctx, set, self)
		go func() {
			for l == nil && pause(ctx, registerRetry) {
				l, where, _ = o.listenControl(ctx) // why it failed has been told
			}
			if l != nil {
				o.publishNode(ctx, set, id, self, where)
				serveControl(log, s, l)
			}
		}()
		return s.Stop, nil
	}
	o.publishNode(ctx, set, id, self, where)
	go serveControl(log, s, l)
	return s.Stop, nil
}

func (o *options) listenControl(ctx context.Context) (net.Listener, []string, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.controlAddress)
	if err != nil {
		return nil, nil, fmt.Errorf("--control-address=%s: %w", o.controlAddress, err)
	}
	where, err := wire.Endpoints(l.Addr(), o.controlAdvertise)
	if err != nil {
		l.Close()
		return nil, nil, err
	}
	return l, where, nil
}

func serveControl(log klog.Logger, s *wire.Server, l net.Listener) {
	log.Info("Serving controllers", "address", l.Addr().String())
	if err := s.Serve(l); err != nil {
		log.Error(err, "Controllers cannot ask this node any more")
	}
}

// publishNode makes the node known in the pools with where it is asked, and keeps
// its certificate fresh. Like register it waits for no share that does not answer.
func (o *options) publishNode(ctx context.Context, set *pool.Set, id *wire.Identity, self pool.Node, where []string) {
	first := make(chan struct{})
	tried := sync.OnceFunc(func() { close(first) })
	go id.Keep(ctx, wire.Publication{
		Publish: func(ctx context.Context, all []pool.Certificate) error {
			defer tried()
			n := self
			n.Seen, n.Endpoints, n.Certificates = time.Now(), where, all
			return set.RegisterNode(ctx, n)
		},
		Failed: once(klog.FromContext(ctx), "Node is not registered in every pool yet; tried again"),
	})
	select {
	case <-first:
	case <-time.After(sharePatience):
	case <-ctx.Done():
	}
}

// pause reports whether the context still lives after it.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// refusals logs who was turned away, but not so often that a stranger could fill
// the log.
func refusals(log klog.Logger) func(net.Addr, error) {
	limit := rate.NewLimiter(rate.Every(time.Second), 10)
	return func(from net.Addr, err error) {
		if limit.Allow() {
			log.Info("Refused a peer that asked about volumes", "from", from.String(), "reason", err.Error())
		}
	}
}
