// Package monitoring checks the dashboard and the alerts: Prometheus' parser
// reads every expression, each names metrics and labels that the plugin has, and
// a real Prometheus that scrapes a real plugin has an answer to every panel.
package monitoring

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"go.yaml.in/yaml/v3"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/metrics"
)

const (
	dashboardFile = "../../deploy/grafana/csi-driver-vhdx.json"
	rulesFile     = "../../deploy/prometheus/rules.yaml"
)

// Of the Go runtime's and the process's own metrics those that are used here.
var processes = map[string][]string{
	"process_resident_memory_bytes": nil,
	"process_cpu_seconds_total":     nil,
}

// known are the labels of each series that the plugin has.
func known() map[string][]string {
	all := map[string][]string{}
	for _, m := range metrics.All {
		if m.Kind != metrics.Histogram {
			all[m.Name] = m.Labels
			continue
		}
		all[m.Name+"_bucket"] = append(slices.Clone(m.Labels), "le")
		all[m.Name+"_sum"], all[m.Name+"_count"] = m.Labels, m.Labels
	}
	for name, l := range processes {
		all[name] = l
	}
	return all
}

// scraped are labels that Prometheus adds.
var scraped = []string{"instance", "job"}

// check parses an expression and looks up what it names.
func check(expr string) error {
	e, err := parser.NewParser(parser.Options{}).ParseExpr(expr)
	if err != nil {
		return err
	}
	all := known()
	var names, has []string
	var wrong error
	parser.Inspect(e, func(n parser.Node, _ []parser.Node) error {
		if v, ok := n.(*parser.VectorSelector); ok {
			own, found := all[v.Name]
			if !found {
				wrong = fmt.Errorf("the plugin has no metric %s", v.Name)
			}
			names, has = append(names, v.Name), append(has, own...)
			for _, m := range v.LabelMatchers {
				if m.Name != labels.MetricName && !slices.Contains(own, m.Name) && !slices.Contains(scraped, m.Name) {
					wrong = fmt.Errorf("%s has no label %s", v.Name, m.Name)
				}
			}
		}
		return nil
	})
	if len(names) == 0 {
		return fmt.Errorf("%q names no metric", expr)
	}
	parser.Inspect(e, func(n parser.Node, _ []parser.Node) error {
		if a, ok := n.(*parser.AggregateExpr); ok && !a.Without {
			for _, l := range a.Grouping {
				if !slices.Contains(has, l) && !slices.Contains(scraped, l) {
					wrong = fmt.Errorf("none of %q has the label %s", names, l)
				}
			}
		}
		return nil
	})
	return wrong
}

type panel struct {
	ID      int
	Title   string
	Type    string
	GridPos struct{ X, Y, W, H int }
	Targets []struct{ Expr, LegendFormat string }
}

// panels reads the dashboard.
func panels(t *testing.T) []panel {
	t.Helper()
	b, err := os.ReadFile(dashboardFile)
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		UID    string
		Panels []panel
	}
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	if d.UID == "" || len(d.Panels) < 10 {
		t.Fatalf("uid %q, %d panels", d.UID, len(d.Panels))
	}
	return d.Panels
}

// plain is an expression of the dashboard without Grafana's variables.
func plain(expr, interval string) string {
	return strings.NewReplacer("$__rate_interval", interval, `"$instance"`, `".*"`, `"$volume"`, `".*"`).Replace(expr)
}

func TestDashboard(t *testing.T) {
	ids := map[int]bool{}
	all := panels(t)
	for i, p := range all {
		if ids[p.ID] {
			t.Errorf("two panels have the id %d", p.ID)
		}
		ids[p.ID] = true
		for _, q := range all[:i] {
			a, b := p.GridPos, q.GridPos
			if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("panels %q and %q overlap", p.Title, q.Title)
			}
		}
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q shows nothing", p.Title)
		}
		for _, q := range p.Targets {
			expr := plain(q.Expr, "5m")
			if strings.Contains(expr, "$") {
				t.Errorf("panel %q: unknown variable in %s", p.Title, expr)
			}
			if err := check(expr); err != nil {
				t.Errorf("panel %q: %s: %v", p.Title, expr, err)
			}
			for _, m := range regexp.MustCompile(`{{(\w+)}}`).FindAllStringSubmatch(q.LegendFormat, -1) {
				if !strings.Contains(expr, m[1]) {
					t.Errorf("panel %q: the legend shows %s, which %s does not keep", p.Title, m[1], expr)
				}
			}
		}
	}
}

// TestRules reads the file as strictly as Prometheus does; `promtool check
// rules` says the same where it is installed.
func TestRules(t *testing.T) {
	f, err := os.Open(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var file struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	d := yaml.NewDecoder(f)
	d.KnownFields(true)
	if err := d.Decode(&file); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			if err := check(r.Expr); err != nil {
				t.Errorf("%s: %v", r.Alert, err)
			}
			if seen[r.Alert] || !strings.HasPrefix(r.Alert, "Vhdx") {
				t.Errorf("%q is there twice or not ours", r.Alert)
			}
			seen[r.Alert] = true
			if s := r.Labels["severity"]; s != "warning" && s != "critical" {
				t.Errorf("%s: severity %q", r.Alert, s)
			}
			if r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
				t.Errorf("%s says neither what is wrong nor what to do", r.Alert)
			}
		}
	}
	if len(seen) < 5 {
		t.Fatalf("only %d alerts", len(seen))
	}
}

// What a typing error makes of an expression is noticed.
func TestCheckNotices(t *testing.T) {
	for _, bad := range []string{
		`sum(vhdx_csi_volume_request_total)`, `vhdx_csi_pool_up{poool="x"}`, `sum by (volum) (vhdx_csi_volume_requests_total)`,
		`vhdx_csi_rpc_duration_seconds{method="x"}`, `sum by (pool) (`, `1 > 0`,
	} {
		if check(bad) == nil {
			t.Errorf("%s passes", bad)
		}
	}
}
