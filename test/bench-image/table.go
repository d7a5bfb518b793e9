package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// result is a row as JSON. Times are medians in seconds.
type result struct {
	Name    string  `json:"name"`
	Skipped string  `json:"skipped,omitempty"`
	Rounds  int     `json:"rounds"`
	Ours    float64 `json:"ours"`
	OursCPU float64 `json:"oursCPU"`
	// OursMemory is the greatest resident size of the process in bytes.
	OursMemory int64  `json:"oursMemory"`
	Peer       string `json:"peer,omitempty"`
	// Theirs as the peer ran, and Sync what it left to do: together it was as
	// durable as Ours.
	Theirs    float64 `json:"theirs,omitempty"`
	Sync      float64 `json:"sync,omitempty"`
	TheirsCPU float64 `json:"theirsCPU,omitempty"`
	// TheirsStopped: the peer was killed, and would have taken longer.
	TheirsStopped bool    `json:"theirsStopped,omitempty"`
	TheirsMemory  int64   `json:"theirsMemory,omitempty"`
	Bytes         int64   `json:"bytes,omitempty"`
	Ratio         float64 `json:"ratio,omitempty"` // median of the rounds' own, Sync counted
	RatioUnsynced float64 `json:"ratioUnsynced,omitempty"`
	Target        string  `json:"target,omitempty"`
	Met           *bool   `json:"met,omitempty"`
}

func (r row) result() result {
	res := result{Name: r.name, Bytes: r.bytes, Rounds: len(r.ours)}
	if r.skipped != nil {
		res.Skipped = r.skipped.Error()
		return res
	}
	res.Ours = medianOf(r.ours, figure.whole)
	res.OursCPU = medianOf(r.ours, cpu)
	res.OursMemory = int64(medianOf(r.ours, memory))
	if r.line.theirs != nil {
		res.Peer = "qemu-img"
		if r.peer != "" {
			res.Peer = r.peer
		}
		res.Theirs = medianOf(r.theirs, func(f figure) float64 { return f.took.Seconds() })
		res.Sync = medianOf(r.theirs, func(f figure) float64 { return f.sync.Seconds() })
		res.TheirsCPU = medianOf(r.theirs, cpu)
		res.TheirsMemory = int64(medianOf(r.theirs, memory))
		res.TheirsStopped = slices.ContainsFunc(r.theirs, func(f figure) bool { return f.stopped })
		res.Ratio = r.ratio(figure.whole)
		res.RatioUnsynced = r.ratio(func(f figure) float64 { return f.took.Seconds() })
	}
	var met bool
	switch {
	case r.want > 0:
		res.Target, met = fmt.Sprintf("%.1f", r.want), res.Ratio >= r.want
	case r.limit > 0:
		res.Target, met = fmt.Sprintf("under %v", r.limit), res.Ours < r.limit.Seconds()
	default:
		return res
	}
	res.Met = &met
	return res
}

func cpu(f figure) float64    { return f.cpu.Seconds() }
func memory(f figure) float64 { return float64(f.memory) }

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func medianOf(figures []figure, of func(figure) float64) float64 {
	var v []float64
	for _, f := range figures {
		v = append(v, of(f))
	}
	return median(v)
}

// ratio is the median of the rounds' own ratios.
func (r row) ratio(of func(figure) float64) float64 {
	var v []float64
	for i := range r.ours {
		v = append(v, of(r.theirs[i])/of(r.ours[i]))
	}
	return median(v)
}

// report is a run.
type report struct {
	Machine  string   `json:"machine"`
	Began    string   `json:"began"`
	Seconds  float64  `json:"seconds"`
	Rounds   int      `json:"rounds"`
	Quick    bool     `json:"quick"`
	LoadFrom string   `json:"loadBefore"`
	LoadTo   string   `json:"loadAfter"`
	Results  []result `json:"results"`
}

func (r *report) printJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// print writes Markdown.
func (r *report) print(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s. %d rounds and more, medians; load average %s before, %s after; %.0f s in all.", r.Machine, r.Rounds, r.LoadFrom, r.LoadTo, r.Seconds)
	if r.Quick {
		b.WriteString(" **SMALL SIZES: the figures mean nothing.**")
	}
	b.WriteString("\n\n| | ours | peer | its sync | ratio | without sync | target | | processor: ours | peer |\n|---|---:|---:|---:|---:|---:|---:|---|---:|---:|\n")
	missed := 0
	for _, res := range r.Results {
		b.WriteString(res.markdown())
		if res.Met != nil && !*res.Met {
			missed++
		}
	}
	fmt.Fprintf(&b, "\nTargets missed: %d.\n", missed)
	_, err := io.WriteString(w, b.String())
	return err
}

func (r result) markdown() string {
	if r.Skipped != "" {
		return fmt.Sprintf("| %s | not measured: %s | | | | | | | | |\n", r.Name, r.Skipped)
	}
	cells := []string{r.Name, r.time(r.Ours, r.OursMemory), "", "", "", "", r.Target, "", duration(r.OursCPU), ""}
	if r.Met != nil {
		cells[7] = "met"
		if !*r.Met {
			cells[7] = "**missed**"
		}
	}
	if r.Peer != "" {
		over := ""
		if r.TheirsStopped {
			over = "> "
		}
		cells[2] = over + r.time(r.Theirs, r.TheirsMemory)
		if r.Sync > 0 {
			cells[3] = duration(r.Sync)
			cells[5] = fmt.Sprintf("%.2f", r.RatioUnsynced)
		}
		cells[4] = fmt.Sprintf("%s%.2f", over, r.Ratio)
		cells[9] = over + duration(r.TheirsCPU)
	}
	return "| " + strings.Join(cells, " | ") + " |\n"
}

// time is a time and what else there is to say: a rate, or memory where the
// target is on opening.
func (r result) time(s float64, memory int64) string {
	t := duration(s)
	if r.Bytes > 0 {
		t += fmt.Sprintf(", %.0f MB/s", float64(r.Bytes)/s/1e6)
	}
	if strings.HasPrefix(r.Target, "under") {
		t += fmt.Sprintf(", %d MiB", memory>>20)
	}
	return t
}

func duration(s float64) string {
	d := time.Duration(s * float64(time.Second))
	switch {
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", s*1e3)
	case d < time.Second:
		return fmt.Sprintf("%.0f ms", s*1e3)
	}
	return fmt.Sprintf("%.2f s", s)
}
