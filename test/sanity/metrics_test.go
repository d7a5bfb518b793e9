package sanity

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-vhdx/csi-driver-vhdx/test/plugin"
)

// freeAddress is one that nobody listens on now.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().String()
}

// samples are the values of a page of metrics by name and labels.
type samples map[string]float64

// scrape reads the page, as soon as somebody serves it.
func scrape(t *testing.T, address string) samples {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/metrics", nil)
		must(t, err)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			if ctx.Err() != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
			continue
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			b, _ := io.ReadAll(resp.Body)
			t.Fatalf("%s: %s", resp.Status, b)
		}
		s := samples{}
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			name, value, _ := strings.Cut(lines.Text(), "} ")
			if !strings.Contains(name, "{") {
				name, value, _ = strings.Cut(lines.Text(), " ")
			} else {
				name += "}"
			}
			if v, err := strconv.ParseFloat(value, 64); err == nil && !strings.HasPrefix(name, "#") {
				s[name] = v
			}
		}
		return s
	}
}

// of is how many series carry the label.
func (s samples) of(label string) (n int) {
	for name := range s {
		if strings.Contains(name, label) {
			n++
		}
	}
	return n
}

// The numbers of a real process follow what is done with a real volume, over
// the death of its worker; what is detached has none any more.
func TestMetrics(t *testing.T) {
	ctx, dir := t.Context(), home(t)
	address := freeAddress(t)
	p := start(t, dir, "--metrics-address="+address)
	v, err := p.Create(ctx, "life", 512*mib, kinds["ext4"], nil)
	must(t, err)
	before := scrape(t, address)
	if n := before.of(`volume="`); n != 0 {
		t.Errorf("%d series of a volume before one is attached", n)
	}
	must(t, v.Up(ctx))
	up := scrape(t, address)
	want := write(t, v, "synced", 7*mib+4096)
	written := scrape(t, address)
	series := func(name, labels string) string { return "vhdx_csi_" + name + "{" + labels + "}" }
	bytes := series("volume_bytes_total", `kind="write",volume="`+v.ID+`"`)
	if moved := written[bytes] - up[bytes]; moved < 7<<20 || moved > 64<<20 {
		t.Errorf("%v bytes were written for a file of 7 MiB", moved)
	}
	flushes := series("volume_flush_duration_seconds_count", `volume="`+v.ID+`"`)
	if written[flushes] <= up[flushes] || written[series("volume_flush_duration_seconds_sum", `volume="`+v.ID+`"`)] <= 0 {
		t.Errorf("flushes: %v, %v", up[flushes], written[flushes])
	}
	for name, value := range map[string]float64{
		series("volumes", `state="serving"`):                                       1,
		series("volumes", `state="waiting"`):                                       0,
		series("pool_up", `pool="default"`):                                        1,
		series("worker_restarts_total", `kind="killed"`):                           0,
		series("rpc_duration_seconds_count", `code="OK",method="NodeStageVolume"`): 1,
		series("rpc_duration_seconds_count", `code="OK",method="CreateVolume"`):    1,
		"vhdx_csi_worker_gap_seconds":                                              0,
		"vhdx_csi_keeper_up":                                                       1,
		series("volume_request_errors_total", `kind="write",volume="`+v.ID+`"`):    0,
		series("kubernetes_events_total", `outcome="written"`):                     0,
		series("pool_reserve_bytes", `pool="default"`):                             0,
		series("recovered_volumes", `outcome="resumed"`):                           0,
		"vhdx_csi_log_replays_total":                                               0,
	} {
		if got, ok := written[name]; !ok || got != value {
			t.Errorf("%s is %v, %v; want %v", name, got, ok, value)
		}
	}
	if free, total := written[series("pool_free_bytes", `pool="default"`)], written[series("pool_total_bytes", `pool="default"`)]; free <= 0 || total < free {
		t.Errorf("%v of %v bytes are free", free, total)
	}

	// The worker dies; its successor says so and serves the same address.
	worker, err := p.AwaitChild(ctx, plugin.Worker)
	must(t, err, syscall.Kill(worker, syscall.SIGKILL))
	_, err = p.AwaitChild(ctx, plugin.Worker, worker)
	must(t, err)
	expect(t, v, "synced", want)
	after := scrape(t, address)
	for after[series("worker_restarts_total", `kind="killed"`)] != 1 { // the dead one may have answered
		time.Sleep(10 * time.Millisecond)
		after = scrape(t, address)
	}
	if g := after["vhdx_csi_worker_gap_seconds"]; g <= 0 || g > 60 {
		t.Errorf("a gap of %v s", g)
	}
	t.Attr("gap-of-killed-worker", strconv.FormatFloat(after["vhdx_csi_worker_gap_seconds"], 'f', 3, 64)+" s")
	if after[series("recovered_volumes", `outcome="resumed"`)] != 1 || after["vhdx_csi_log_replays_total"] != 1 ||
		after["vhdx_csi_log_replayed_entries_total"] == 0 {
		t.Errorf("resumed %v, replays %v of %v entries", after[series("recovered_volumes", `outcome="resumed"`)],
			after["vhdx_csi_log_replays_total"], after["vhdx_csi_log_replayed_entries_total"])
	}
	must(t, v.Down(ctx))
	if n := scrape(t, address).of(`volume="` + v.ID); n != 0 {
		t.Errorf("%d series of a volume that is detached", n)
	}
}

// The controller's numbers are those of the pool, and a scrape changes nothing.
func TestMetricsOfController(t *testing.T) {
	ctx, dir := t.Context(), home(t)
	address := freeAddress(t)
	bin, err := binary()
	must(t, err)
	p, err := plugin.Start(ctx, plugin.Options{Binary: bin, Dir: dir, Mode: "controller", Args: []string{"--metrics-address=" + address}})
	must(t, err)
	t.Cleanup(func() { must(t, p.Stop(context.WithoutCancel(ctx))) })
	_, err = p.Controller().CreateVolume(ctx, &csi.CreateVolumeRequest{Name: "x", VolumeCapabilities: []*csi.VolumeCapability{plugin.Raw()}})
	must(t, err)
	s := scrape(t, address)
	for s[`vhdx_csi_pool_up{pool="default"}`] != 1 { // the first look
		time.Sleep(10 * time.Millisecond)
		s = scrape(t, address)
	}
	for _, name := range []string{"total", "free", "reserve", "committed", "available"} {
		if _, ok := s["vhdx_csi_pool_"+name+`_bytes{pool="default"}`]; !ok {
			t.Errorf("no %s bytes", name)
		}
	}
	for _, name := range []string{"vhdx_csi_volumes", "vhdx_csi_keeper_up", "vhdx_csi_worker"} {
		if n := s.of(name); n > 0 {
			t.Errorf("%d series %s of a controller", n, name)
		}
	}
}
