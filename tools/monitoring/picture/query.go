package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// panel is one of the dashboard.
type panel struct {
	Title       string
	Type        string
	GridPos     struct{ X, Y, W, H float64 }
	FieldConfig struct {
		Defaults struct{ Unit string }
	}
	Targets []struct {
		Expr, LegendFormat string
		Instant            bool
	}
}

func readDashboard(name string) ([]panel, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var d struct{ Panels []panel }
	if err := json.Unmarshal(b, &d); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return d.Panels, nil
}

// line is one series of a panel.
type line struct {
	name   string
	points []point
}

type point struct{ t, v float64 }

// drawn is a panel with what is to be drawn in it.
type drawn struct {
	panel
	lines []line
}

func (p *prometheus) fill(ctx context.Context, pan panel, from, to time.Time) (drawn, error) {
	d := drawn{panel: pan}
	for _, t := range pan.Targets {
		expr := strings.NewReplacer("$__rate_interval", rateOver.String(), `"$instance"`, `".*"`, `"$volume"`, `".*"`).Replace(t.Expr)
		found, err := p.series(ctx, expr, from, to)
		if err != nil {
			return d, fmt.Errorf("panel %q: %w", pan.Title, err)
		}
		for _, s := range found {
			d.lines = append(d.lines, line{legend(t.LegendFormat, s.Metric), s.points()})
		}
	}
	slices.SortStableFunc(d.lines, func(a, b line) int { return strings.Compare(a.name, b.name) })
	return d, nil
}

var placeholder = regexp.MustCompile(`{{\s*(\w+)\s*}}`)

func legend(format string, labels map[string]string) string {
	return placeholder.ReplaceAllStringFunc(format, func(p string) string {
		name := placeholder.FindStringSubmatch(p)[1]
		if v := labels[name]; name == "volume" && len(v) > longestVolume {
			return v[:longestVolume] + "…" // its id goes on, and would leave no room for the others
		}
		return labels[name]
	})
}

// longestVolume is how much a legend shows of a volume's id.
const longestVolume = 12

// busyUntil is the last time at which any volume was served.
func (p *prometheus) busyUntil(ctx context.Context, from, to time.Time) (time.Time, error) {
	found, err := p.series(ctx, `sum(vhdx_csi_volumes{state="serving"}) > 0`, from, to)
	if err != nil || len(found) == 0 {
		return to, err
	}
	served := found[0].points()
	return time.Unix(int64(served[len(served)-1].t), 0), nil
}

type series struct {
	Metric map[string]string
	Values [][2]any
}

func (s series) points() []point {
	var ps []point
	for _, v := range s.Values {
		t, _ := v[0].(float64)
		text, _ := v[1].(string)
		f, err := strconv.ParseFloat(text, 64)
		if err == nil && f == f {
			ps = append(ps, point{t, f})
		}
	}
	return ps
}

// step of the drawing.
const step = scrapeEvery

func (p *prometheus) series(ctx context.Context, expr string, from, to time.Time) ([]series, error) {
	stamp := func(t time.Time) string { return strconv.FormatInt(t.Unix(), 10) }
	q := url.Values{"query": {expr}, "start": {stamp(from)}, "end": {stamp(to)}, "step": {step.String()}}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.address+"/api/v1/query_range?"+q.Encode(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var a struct {
		Status, Error string
		Data          struct{ Result []series }
	}
	if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
		return nil, fmt.Errorf("ask prometheus for %s: %w", expr, err)
	}
	if a.Status != "success" {
		return nil, fmt.Errorf("ask prometheus for %s: %s", expr, a.Error)
	}
	return a.Data.Result, nil
}
