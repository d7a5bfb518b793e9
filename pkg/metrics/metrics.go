package metrics

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/supervisor"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/node"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// Process says what runs.
type Process struct {
	Version, Mode string
}

// Metrics are those of one process. What it is not told is not there.
type Metrics struct {
	registry *prometheus.Registry
	rpcs     *prometheus.HistogramVec
	replays  [3]*atomic.Uint64 // how many, ns, entries; see Node
	events   *prometheus.CounterVec
	tended   [3]*prometheus.CounterVec // merged, removed, bytes; see Controller

	keeper     atomic.Bool
	keeperTold sync.Once
}

// Buckets from what a call takes from memory to what kubelet's patience is.
var (
	rpcBuckets = []float64{0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120}
)

// New makes the metrics that every process has.
func New(p Process) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(), rpcs: rpcDuration.histogram(rpcBuckets), events: events.counter()}
	m.registry.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		m.rpcs, m.events,
		collector(func(out chan<- prometheus.Metric) { out <- buildInfo.one(1, p.Version, p.Mode, runtime.Version()) }, buildInfo),
	)
	for _, outcome := range []string{EventWritten, EventFailed, EventDropped} {
		m.events.WithLabelValues(outcome)
	}
	return m
}

// Call counts a call that has been answered.
func (m *Metrics) Call(method, code string, took time.Duration) {
	m.rpcs.WithLabelValues(method, code).Observe(took.Seconds())
}

// What became of an Event.
const (
	EventWritten = "written"
	EventFailed  = "failed"
	EventDropped = "dropped"
)

// Controller adds what a controller counts.
func (m *Metrics) Controller() {
	for i, c := range []*Metric{layersMerged, layersFreed, bytesFreed} {
		m.tended[i] = c.counter()
		m.tended[i].WithLabelValues()
		m.registry.MustRegister(m.tended[i])
	}
}

// Tended counts images that nobody needed. Controller comes first.
func (m *Metrics) Tended(t pool.Tended) {
	for i, n := range []int64{int64(t.Rebuilt), int64(t.Removed), t.Freed} {
		m.tended[i].WithLabelValues().Add(float64(max(n, 0)))
	}
}

// Event counts one.
func (m *Metrics) Event(outcome string) { m.events.WithLabelValues(outcome).Inc() }

// Pools adds the figures of pools, with what the controller knows of them or
// without. figures must wait for nothing.
func (m *Metrics) Pools(controller bool, figures func() []pool.Figures) {
	all := []*Metric{poolUp, poolSeen, poolTotal, poolFree, poolReserve, poolHealth}
	if controller {
		all = append(all, poolCommitted, poolAvailable, poolLogical, poolAlloc, poolPinned, poolVolumes, poolCensus)
	}
	m.registry.MustRegister(collector(func(out chan<- prometheus.Metric) {
		for _, f := range figures() {
			collectPool(out, controller, f)
		}
	}, all...))
}

func collectPool(out chan<- prometheus.Metric, controller bool, f pool.Figures) {
	up := 0.0
	if f.Err == nil && !f.At.IsZero() {
		up = 1
	}
	out <- poolUp.one(up, f.Pool)
	if t, _ := f.Trouble(); t != pool.NoTrouble {
		out <- poolHealth.one(1, f.Pool, string(t))
	}
	if f.At.IsZero() {
		return // nothing is known, and zero would be a lie
	}
	out <- poolSeen.one(unix(f.At), f.Pool)
	out <- poolTotal.one(float64(f.Total), f.Pool)
	out <- poolFree.one(float64(f.Free), f.Pool)
	out <- poolReserve.one(float64(f.Reserve), f.Pool)
	if !controller {
		return
	}
	out <- poolCommitted.one(float64(f.Committed), f.Pool)
	out <- poolAvailable.one(float64(f.Available), f.Pool)
	if c := f.Census; !c.At.IsZero() {
		out <- poolLogical.one(float64(c.Logical), f.Pool)
		out <- poolAlloc.one(float64(c.Allocated), f.Pool)
		out <- poolPinned.one(float64(c.Pinned), f.Pool)
		out <- poolVolumes.one(float64(c.Volumes), f.Pool)
		out <- poolCensus.one(unix(c.At), f.Pool)
	}
}

func unix(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// Worker is what a worker found when it started.
type Worker struct {
	Past      supervisor.History
	Gap       time.Duration // 0: there was no worker before
	Recovered []node.Recovered
}

// Node adds what only the node service has. list must wait for nothing. A
// worker replays logs before anybody has scraped it, so that these are counted in
// tallies that outlive it: rate() would not see a second worker's one replay
// after a first one's.
func (m *Metrics) Node(list func() []node.Status, tally func(i int) *atomic.Uint64) {
	for i := range m.replays {
		m.replays[i] = tally(i)
	}
	m.registry.MustRegister(newVolumes(list), collector(func(out chan<- prometheus.Metric) {
		out <- replays.one(float64(m.replays[0].Load()))
		out <- replaySeconds.one(time.Duration(m.replays[1].Load()).Seconds())
		out <- replayEntries.one(float64(m.replays[2].Load()))
	}, replays, replaySeconds, replayEntries))
}

// Worker adds how this worker came into being. Once, after the devices of the
// one before have been taken over.
func (m *Metrics) Worker(w Worker) {
	outcomes := map[node.Outcome]int{}
	for _, o := range node.Outcomes {
		outcomes[o] = 0
	}
	for _, r := range w.Recovered {
		outcomes[r.Outcome]++
	}
	m.registry.MustRegister(collector(func(out chan<- prometheus.Metric) {
		for k, n := range w.Past.Ends {
			out <- restarts.one(float64(n), supervisor.Kind(k).String())
		}
		out <- gap.one(w.Gap.Seconds())
		for o, n := range outcomes {
			out <- recovered.one(float64(n), string(o))
		}
	}, restarts, gap, recovered))
}

// Replayed counts a replay of a log. Node comes first.
func (m *Metrics) Replayed(r vhdx.ReplayInfo) {
	m.replays[0].Add(1)
	m.replays[1].Add(uint64(max(r.Took, 0)))
	m.replays[2].Add(uint64(max(r.Entries, 0)))
}

// Keeper notes whether there is one.
func (m *Metrics) Keeper(up bool) {
	m.keeper.Store(up)
	m.keeperTold.Do(func() {
		m.registry.MustRegister(collector(func(out chan<- prometheus.Metric) {
			up := 0.0
			if m.keeper.Load() {
				up = 1
			}
			out <- keeperUp.one(up)
		}, keeperUp))
	})
}

// collecting is a prometheus.Collector of metrics that are made at the scrape.
type collecting struct {
	metrics []*Metric
	collect func(chan<- prometheus.Metric)
}

func collector(collect func(chan<- prometheus.Metric), metrics ...*Metric) *collecting {
	return &collecting{metrics, collect}
}

func (c *collecting) Describe(out chan<- *prometheus.Desc) {
	for _, m := range c.metrics {
		out <- m.desc
	}
}

func (c *collecting) Collect(out chan<- prometheus.Metric) { c.collect(out) }
