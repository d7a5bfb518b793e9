package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// table collects the figures of all rounds.
type table struct {
	options options
	rows    []*row
}

type row struct {
	w       workload
	figures map[string][]float64 // by target, one per round
}

func (t *table) row(w workload) *row {
	for _, r := range t.rows {
		if r.w.name == w.name {
			return r
		}
	}
	r := &row{w: w, figures: map[string][]float64{}}
	t.rows = append(t.rows, r)
	return r
}

func (r *row) add(target string, v float64) { r.figures[target] = append(r.figures[target], v) }

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if len(v) == 0 {
		return 0
	}
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// ratio is the median of the rounds' own ratios.
func (r *row) ratio(to string) float64 {
	var v []float64
	for i := range min(len(r.figures[ours]), len(r.figures[to])) {
		v = append(v, r.figures[ours][i]/r.figures[to][i])
	}
	return median(v)
}

func (t *table) print(w io.Writer) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(tw, "\t\traw loop\tqemu-storage-daemon\tours\tours / qemu\tours / raw\t\n")
	for _, r := range t.rows {
		_, _ = fmt.Fprintf(tw, "%s\t%s\t%.0f\t%.0f\t%.0f\t%.2f\t%.2f\t\n", r.w.name, r.w.unit,
			median(r.figures[raw]), median(r.figures[qemu]), median(r.figures[ours]), r.ratio(qemu), r.ratio(raw))
	}
	_ = tw.Flush()
	_, _ = fmt.Fprintf(w, "\nMedians of %d rounds of %.1f s, %d MiB working set, sequential at depth %d. Ratios are those of the median round.\n",
		t.options.rounds, t.options.seconds, t.options.size>>20, seqDepth)
}
