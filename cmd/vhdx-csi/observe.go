package main

import (
	"context"
	"os"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/stats"
	"k8s.io/klog/v2"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/kubeapi"
	"github.com/csi-vhdx/csi-driver-vhdx/internal/supervisor"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/driver"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/events"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/metrics"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/node"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// observer tells the world outside how the plugin does. Nothing waits for it.
type observer struct {
	metrics *metrics.Metrics
	events  *events.Recorder // nil: nobody wants any
	traces  stats.Handler    // nil: likewise
	pools   *pool.Watch
	end     func() // of the traces
}

// lookEvery is how often states are compared with what they were.
const lookEvery = 2 * time.Second

// observe starts what needs no node.
func (o *options) observe(ctx context.Context) (*observer, error) {
	ob := &observer{metrics: metrics.New(metrics.Process{Version: version, Mode: o.mode}), end: func() {}}
	if err := ob.startTraces(ctx, o); err != nil {
		return nil, err
	}
	if o.events == eventsOff {
		return ob, nil
	}
	log := klog.FromContext(ctx)
	c, err := kubeapi.InCluster()
	if err != nil {
		if o.events == eventsOn {
			log.Error(err, "No Events are written")
		}
		return ob, nil
	}
	instance, _ := os.Hostname() // the pod's name
	opts := events.Options{
		Cluster: c, Driver: driver.Name, Instance: instance,
		Written: func() { ob.metrics.Event(metrics.EventWritten) },
		Dropped: func() { ob.metrics.Event(metrics.EventDropped) },
		Failed: func(err error) {
			ob.metrics.Event(metrics.EventFailed)
			log.Info("An Event could not be written", "reason", err.Error())
		},
	}
	if o.node() {
		opts.Node = o.nodeID
	}
	ob.events = events.New(ctx, opts)
	return ob, nil
}

// watchPools begins to look at the pools, and serves the metrics until ctx ends:
// from before there is a node, for that may have to wait for its keeper.
func (ob *observer) watchPools(ctx context.Context, o *options, set *pool.Set) {
	ob.pools = set.Watch(ctx, pool.WatchOptions{Volumes: o.controller()})
	ob.metrics.Pools(o.controller(), ob.pools.Figures)
	if o.metricsAddress != "" {
		go ob.metrics.Serve(ctx, o.metricsAddress, func(err error) { klog.FromContext(ctx).Error(err, "No metrics") })
	}
}

// started notes how this worker came into being.
func (ob *observer) started(past supervisor.History, began time.Duration, all []node.Recovered) {
	var gap time.Duration
	if past.Restarts() > 0 {
		gap = began - past.At
		for _, r := range all {
			if r.Outcome == node.OutcomeResumed {
				gap = max(gap, began-past.At+r.Took)
			}
		}
	}
	ob.metrics.Worker(metrics.Worker{Past: past, Gap: gap, Recovered: all})
	for _, e := range events.Started(past, gap, all) {
		ob.events.Record(e)
	}
}

// run has Events made of what changes, until ctx ends.
func (ob *observer) run(ctx context.Context, o *options, m *node.Manager) {
	if ob.events == nil {
		return
	}
	go func() {
		w := events.NewWatcher()
		for tick := time.NewTicker(lookEvery); ; {
			select {
			case <-ctx.Done():
				tick.Stop()
				return
			case now := <-tick.C:
				news := w.Pools(ob.pools.Figures(), o.controller())
				if m != nil {
					news = append(news, w.Volumes(now, m.Volumes())...)
				}
				for _, e := range news {
					ob.events.Record(e)
				}
			}
		}
	}()
}

// maxAttribute bounds what a span says of a request nobody has checked.
const maxAttribute = 128

// call is told of each call that has been answered.
func (ob *observer) call(ctx context.Context, c driver.Call) {
	ob.metrics.Call(c.Method, c.Code, c.Took)
	if span := trace.SpanFromContext(ctx); span.IsRecording() {
		span.SetAttributes(attribute.String("csi.volume", c.Volume[:min(len(c.Volume), maxAttribute)]))
	}
	if e, ok := events.Call(c.Volume, c.Err); ok {
		ob.events.Record(e)
	}
}

// keeperLost and keeperRestored are told by the link to the keeper.
func (ob *observer) keeperLost(err error) {
	ob.metrics.Keeper(false)
	ob.events.Record(events.Lost(err))
}

func (ob *observer) keeperRestored(items int, err error) {
	ob.metrics.Keeper(true)
	ob.events.Record(events.Restored(items, err))
}
