package monitoring

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-vhdx/csi-driver-vhdx/test/plugin"
)

const interval = "5s" // of rate(), for scrapes every second

// TestPanelsHaveData: a real Prometheus scrapes a real plugin while a real
// volume is written to and its worker is killed; then every query of the
// dashboard has an answer.
func TestPanelsHaveData(t *testing.T) {
	prometheus, err := exec.LookPath("prometheus")
	if err != nil {
		t.Skip("needs prometheus: apt-get install prometheus")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts filesystems and makes loop devices")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "vhdx-")
	must(t, err)
	t.Cleanup(func() {
		if err := plugin.Clean(context.WithoutCancel(ctx), dir); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	// In its own module, which has what it needs.
	if out, err := exec.CommandContext(ctx, "go", "build", "-C", "../..", "-o", dir, "./cmd/vhdx-csi").CombinedOutput(); err != nil {
		t.Fatalf("build the plugin: %v\n%s", err, out)
	}
	scraped, asked := free(t), free(t)
	p, err := plugin.Start(ctx, plugin.Options{Binary: filepath.Join(dir, "vhdx-csi"), Dir: dir, Args: []string{"--metrics-address=" + scraped}})
	must(t, err)
	t.Cleanup(func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if err := p.Stop(end); err != nil {
			t.Error(err)
			p.Kill()
		}
	})
	startPrometheus(t, prometheus, dir, scraped, asked)

	v, err := p.Create(ctx, "seen", 256<<20, plugin.Filesystem("ext4"), nil)
	must(t, err)
	must(t, v.Up(ctx))
	t.Cleanup(func() {
		if err := v.Down(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	})
	stop, stopped := make(chan struct{}), make(chan error)
	go func() { stopped <- work(v.Target, stop) }()
	defer func() {
		close(stop)
		must(t, <-stopped)
	}()
	for ask(ctx, asked, "vhdx_csi_volume_requests_total") == 0 && ctx.Err() == nil { // it has been scraped
		time.Sleep(100 * time.Millisecond)
	}
	worker, err := p.AwaitChild(ctx, plugin.Worker)
	must(t, err)
	must(t, syscall.Kill(worker, syscall.SIGKILL))
	refused := &csi.NodeStageVolumeRequest{} // and calls that fail

	missing := map[string]bool{}
	for _, pan := range panels(t) {
		for _, q := range pan.Targets {
			missing[plain(q.Expr, interval)] = true
		}
	}
	all := len(missing)
	for ctx.Err() == nil && len(missing) > 0 {
		_, _ = p.Node().NodeStageVolume(ctx, refused)
		for expr := range missing {
			if n := ask(ctx, asked, expr); n > 0 {
				delete(missing, expr)
			}
		}
		time.Sleep(500 * time.Millisecond)
	}
	for expr := range missing {
		t.Errorf("no data for %s", expr)
	}
	t.Logf("%d queries have data", all-len(missing))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func free(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().String()
}

func startPrometheus(t *testing.T, prometheus, dir, scraped, asked string) {
	t.Helper()
	rules, err := filepath.Abs(rulesFile)
	must(t, err)
	config := filepath.Join(dir, "prometheus.yml")
	must(t, os.WriteFile(config, fmt.Appendf(nil, `
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [%q]
scrape_configs:
  - job_name: vhdx-csi
    static_configs: [{targets: [%q]}]
`, rules, scraped), 0o600))
	// No argument of it may look like the plugin's, whose processes are known by
	// their directory.
	cmd := exec.Command(prometheus, "--config.file=prometheus.yml", "--storage.tsdb.path=tsdb", "--web.listen-address="+asked)
	cmd.Dir = dir
	log, err := os.Create(filepath.Join(dir, "prometheus.log"))
	must(t, err)
	cmd.Stdout, cmd.Stderr = log, log
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if b, err := os.ReadFile(log.Name()); t.Failed() && err == nil {
			t.Logf("prometheus:\n%s", b[max(0, len(b)-4000):])
		}
		_ = log.Close()
	})
}

// work writes and syncs, reads back, and removes, until it is told to stop.
func work(dir string, stop chan struct{}) error {
	name := filepath.Join(dir, "file")
	for {
		select {
		case <-stop:
			return nil
		case <-time.After(20 * time.Millisecond):
		}
		f, err := os.Create(name)
		if err != nil {
			return err
		}
		_, err = f.Write(make([]byte, 1<<20))
		if err == nil {
			err = f.Sync()
		}
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
	}
}

// ask is how many series answer a query; 0 where there is no answer yet.
func ask(ctx context.Context, address, expr string) int {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/api/v1/query?query="+url.QueryEscape(expr), nil)
	if err != nil {
		return 0
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0 // it is starting
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0
	}
	var a struct {
		Status string
		Data   struct {
			Result []struct{ Value []any }
		}
	}
	if json.Unmarshal(b, &a) != nil || a.Status != "success" {
		return 0
	}
	n := 0
	for _, s := range a.Data.Result {
		if len(s.Value) == 2 && s.Value[1] != "NaN" {
			n++
		}
	}
	return n
}
