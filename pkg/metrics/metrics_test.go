package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/supervisor"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/node"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// whole has every metric there is.
func whole(list func() []node.Status) *Metrics {
	m := New(Process{Version: "v1", Mode: "all"})
	m.Call("Probe", "OK", time.Millisecond)
	m.Keeper(true)
	m.Node(list, tallies)
	m.Worker(Worker{})
	m.Controller()
	m.Tended(pool.Tended{Removed: 1})
	m.Pools(true, func() []pool.Figures {
		return []pool.Figures{{Pool: "p", At: time.Unix(1, 0), Total: 100, Free: 5, Census: pool.Census{At: time.Unix(1, 0)}}}
	})
	return m
}

func none() []node.Status { return nil }

func tallies(int) *atomic.Uint64 { return new(atomic.Uint64) }

// Every metric of All is on /metrics with its kind, its help and its labels, and
// no other one but the runtime's and the process's.
func TestAllMetricsAreServed(t *testing.T) {
	m := whole(func() []node.Status {
		return []node.Status{{VolumeID: "v", State: node.StatePaused, Paused: blockdev.Pause{Since: time.Now(), Waiting: 1}, Wrong: []control.Entry{control.PoolFull.Because(nil)}}, {VolumeID: "w", State: node.StateServing, Count: &blockdev.Counters{}}}
	})
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, f := range families {
		if name := f.GetName(); !strings.HasPrefix(name, "go_") && !strings.HasPrefix(name, "process_") {
			var labels []string
			for _, l := range f.GetMetric()[0].GetLabel() {
				labels = append(labels, l.GetName())
			}
			got[name] = fmt.Sprint(strings.ToLower(f.GetType().String()), labels, f.GetHelp())
		}
	}
	want := map[string]string{}
	for _, m := range All {
		labels := slices.Clone(m.Labels)
		slices.Sort(labels) // as they are written
		want[m.Name] = fmt.Sprint(m.Kind, labels, m.Help)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-declared +served)\n%s", d)
	}
	problems, err := testutil.GatherAndLint(m.registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}

// The numbers on the page are those that were counted.
func TestValues(t *testing.T) {
	c := &blockdev.Counters{}
	for range 3 {
		c.Done(blockdev.Write, 4096)
	}
	c.Failed(blockdev.Read)
	c.Flushed(300 * time.Microsecond)
	c.Flushed(time.Second)
	c.Flushed(time.Hour)
	m := New(Process{Version: "v1", Mode: "all"})
	m.Node(func() []node.Status {
		return []node.Status{{VolumeID: "a", State: node.StateServing, Count: c}, {VolumeID: "b", State: node.StateQuarantined, Wrong: []control.Entry{control.Quarantined.Because(nil)}}}
	}, tallies)
	m.Worker(Worker{
		Past: supervisor.History{Ends: [supervisor.Kinds]uint64{supervisor.Killed: 2, supervisor.Hung: 1}}, Gap: 1500 * time.Millisecond,
		Recovered: []node.Recovered{{Outcome: node.OutcomeResumed}, {Outcome: node.OutcomeResumed}, {Outcome: node.OutcomeWaiting}},
	})
	m.Pools(true, func() []pool.Figures {
		return []pool.Figures{
			{Pool: "fast", At: time.Unix(1000, 0), Total: 100, Free: 40, Reserve: 5, Committed: 70, Available: 25,
				Census: pool.Census{At: time.Unix(900, 0), Volumes: 2, Logical: 60, Allocated: 30, Pinned: 20}},
			{Pool: "gone", Err: errors.New("made by the test")},
			{Pool: "stuck", Err: errors.New("made by the test"), At: time.Unix(1000, 0), Total: 7, Free: 3},
		}
	})
	m.Replayed(vhdx.ReplayInfo{Entries: 5, Took: 2 * time.Second})
	m.Keeper(true)
	m.Event(EventDropped)
	m.Call("NodeStageVolume", "Aborted", 2*time.Second)
	page := scrape(t, m.Handler())
	for _, want := range []string{
		`vhdx_csi_volume_requests_total{kind="write",volume="a"} 3`,
		`vhdx_csi_volume_bytes_total{kind="write",volume="a"} 12288`,
		`vhdx_csi_volume_request_errors_total{kind="read",volume="a"} 1`,
		`vhdx_csi_volume_flush_duration_seconds_bucket{volume="a",le="0.00025"} 0`,
		`vhdx_csi_volume_flush_duration_seconds_bucket{volume="a",le="0.0005"} 1`,
		`vhdx_csi_volume_flush_duration_seconds_bucket{volume="a",le="1.0"} 2`,
		`vhdx_csi_volume_flush_duration_seconds_bucket{volume="a",le="30.0"} 2`,
		`vhdx_csi_volume_flush_duration_seconds_bucket{volume="a",le="+Inf"} 3`,
		`vhdx_csi_volumes{state="serving"} 1`,
		`vhdx_csi_volumes{state="quarantined"} 1`,
		`vhdx_csi_volumes{state="waiting"} 0`,
		`vhdx_csi_volume_problem{state="quarantined",volume="b"} 1`,
		`vhdx_csi_volume_health{reason="Quarantined",status="inaccessible",volume="b"} 1`,
		`vhdx_csi_pool_health{pool="gone",reason="PoolUnreachable"} 1`,
		`vhdx_csi_worker_restarts_total{kind="killed"} 2`,
		`vhdx_csi_worker_restarts_total{kind="failed"} 0`,
		`vhdx_csi_worker_restarts_total{kind="hung"} 1`,
		`vhdx_csi_worker_gap_seconds 1.5`,
		`vhdx_csi_recovered_volumes{outcome="resumed"} 2`,
		`vhdx_csi_recovered_volumes{outcome="torn down"} 0`,
		`vhdx_csi_pool_up{pool="fast"} 1`,
		`vhdx_csi_pool_up{pool="gone"} 0`,
		`vhdx_csi_pool_up{pool="stuck"} 0`,
		`vhdx_csi_pool_free_bytes{pool="fast"} 40`,
		`vhdx_csi_pool_free_bytes{pool="stuck"} 3`,
		`vhdx_csi_pool_reserve_bytes{pool="fast"} 5`,
		`vhdx_csi_pool_committed_bytes{pool="fast"} 70`,
		`vhdx_csi_pool_logical_bytes{pool="fast"} 60`,
		`vhdx_csi_pool_allocated_bytes{pool="fast"} 30`,
		`vhdx_csi_pool_snapshot_pinned_bytes{pool="fast"} 20`,
		`vhdx_csi_pool_seen_timestamp_seconds{pool="fast"} 1000`,
		`vhdx_csi_log_replays_total 1`,
		`vhdx_csi_log_replay_seconds_total 2`,
		`vhdx_csi_log_replayed_entries_total 5`,
		`vhdx_csi_keeper_up 1`,
		`vhdx_csi_kubernetes_events_total{outcome="dropped"} 1`,
		`vhdx_csi_kubernetes_events_total{outcome="written"} 0`,
		`vhdx_csi_rpc_duration_seconds_count{code="Aborted",method="NodeStageVolume"} 1`,
		`vhdx_csi_build_info{goversion="` + runtime.Version() + `",mode="all",version="v1"} 1`,
	} {
		if !strings.Contains(page, want+"\n") && !strings.Contains(page, strings.ReplaceAll(want, `.0"}`, `"}`)+"\n") {
			t.Errorf("no %s", want)
		}
	}
	for _, no := range []string{`pool_free_bytes{pool="gone"}`, `pool_logical_bytes{pool="stuck"}`, `volume_requests_total{kind="write",volume="b"}`} {
		if strings.Contains(page, no) {
			t.Errorf("there is %s", no)
		}
	}
	if t.Failed() {
		t.Log(page)
	}
}

func scrape(t *testing.T, h http.Handler) string {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("%d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

// count is how many series there are, and how many have the label.
func count(t *testing.T, g prometheus.Gatherer, label, value string) (all, with int) {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			n := 1
			if h := m.GetHistogram(); h != nil {
				n = len(h.GetBucket()) + 3 // +Inf, sum, count
			}
			all += n
			for _, l := range m.GetLabel() {
				if l.GetName() == label && l.GetValue() == value {
					with += n
				}
			}
		}
	}
	return all, with
}

// sum adds up a counter over all volumes.
func sum(t *testing.T, g prometheus.Gatherer, metric *Metric) (total float64, labels map[string]float64) {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	labels = map[string]float64{}
	for _, f := range families {
		if f.GetName() != metric.Name {
			continue
		}
		for _, m := range f.GetMetric() {
			total += m.GetCounter().GetValue()
			for _, l := range m.GetLabel() {
				if l.GetName() == "volume" {
					labels[l.GetValue()] += m.GetCounter().GetValue()
				}
			}
		}
	}
	return total, labels
}

// seriesEach is how many series a volume has; the reference says so too.
const seriesEach = 33

// I-MET-2, I-MET-3, I-MET-4: whatever is attached and detached, the series are
// bounded, those of what is gone are gone, and no count is lost or goes down.
func TestCardinality(t *testing.T) {
	var all []node.Status
	m := New(Process{})
	m.Node(func() []node.Status { return all }, tallies)
	base, _ := count(t, m.registry, "", "")
	add := func(i int) node.Status {
		c := &blockdev.Counters{}
		c.Done(blockdev.Read, 1)
		return node.Status{VolumeID: fmt.Sprintf("v%05d", i), State: node.StateServing, Count: c}
	}
	all = []node.Status{add(0)}
	one, own := count(t, m.registry, "volume", "v00000")
	if own != seriesEach || one != base+seriesEach {
		t.Fatalf("a volume has %d series of %d; %d are documented", own, one-base, seriesEach)
	}
	for i := range 3 * MaxVolumes {
		all = append(all, add(i+1))
	}
	most, others := count(t, m.registry, "volume", Others)
	if limit := base + (MaxVolumes+1)*seriesEach; most != limit || others != seriesEach {
		t.Fatalf("%d series, %d of the others; at most %d", most, others, limit)
	}
	total, labels := sum(t, m.registry, requests)
	if want := float64(3*MaxVolumes + 1); total != want || labels[Others] != want-MaxVolumes {
		t.Fatalf("%v requests, %v of others; want %v", total, labels[Others], want)
	}
	// Half of the named ones and half of the others go: room for new ones.
	all = slices.DeleteFunc(all, func(s node.Status) bool { return s.VolumeID[5]%2 == 0 })
	_, after := sum(t, m.registry, requests)
	if after[Others] != labels[Others] {
		t.Fatalf("the others had %v requests and have %v", labels[Others], after[Others])
	}
	if after["v00000"] != 0 || after["v00001"] != 1 {
		t.Fatalf("%v", after)
	}
	// One of the others is attached anew between two scrapes: there is a name for it now.
	last := &all[len(all)-1]
	last.Count = &blockdev.Counters{}
	last.Count.Done(blockdev.Read, 1)
	if _, again := sum(t, m.registry, requests); again[Others] != labels[Others] || again[last.VolumeID] != 1 {
		t.Fatalf("the others had %v requests and have %v, it has %v", labels[Others], again[Others], again[last.VolumeID])
	}
	// Problems are bounded too.
	all = nil
	for i := range 3 * MaxVolumes {
		all = append(all, node.Status{VolumeID: fmt.Sprint(i), State: node.StateWaiting})
	}
	if _, n := count(t, m.registry, "state", string(node.StateWaiting)); n != MaxVolumes+1 {
		t.Fatalf("%d series of waiting volumes", n)
	}
}

// Scrapes side by side while volumes come and go and count; for the race detector.
func TestScrapesRaceWithWork(t *testing.T) {
	c := &blockdev.Counters{}
	m := whole(func() []node.Status { return []node.Status{{VolumeID: "a", State: node.StateServing, Count: c}} })
	stop := make(chan struct{})
	go func() {
		for {
			select {
			case <-stop:
				return
			default:
				c.Done(blockdev.Write, 512)
				c.Flushed(time.Millisecond)
				m.Call("Probe", "OK", time.Millisecond)
				m.Replayed(vhdx.ReplayInfo{Entries: 1})
				m.Keeper(true)
			}
		}
	}()
	done := make(chan struct{})
	for range scrapesAtOnce {
		go func() {
			defer func() { done <- struct{}{} }()
			for range 20 {
				scrape(t, m.Handler())
			}
		}()
	}
	for range scrapesAtOnce {
		<-done
	}
	close(stop)
}

// The address is taken over as soon as whoever held it is gone, and given up
// with the context.
func TestServeWaitsForTheAddress(t *testing.T) {
	before, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := before.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	told, ended := make(chan error, 10), make(chan struct{})
	go func() {
		whole(none).Serve(ctx, address, func(err error) { told <- err })
		close(ended)
	}()
	if err := <-told; !strings.Contains(err.Error(), address) {
		t.Fatal(err)
	}
	before.Close()
	for {
		resp, err := http.Get("http://" + address + "/metrics")
		if err != nil {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !strings.Contains(string(b), "vhdx_csi_build_info") {
			t.Fatalf("%v\n%s", err, b)
		}
		break
	}
	resp, err := http.Get("http://" + address + "/healthz")
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp, err)
	}
	resp.Body.Close()
	cancel()
	<-ended
	if len(told) > 0 {
		t.Errorf("told twice: %v", <-told)
	}
}
