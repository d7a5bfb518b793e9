package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

type table struct{ rows []row }

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// ratio is the median of the rounds' own ratios.
func (r row) ratio() float64 {
	var v []float64
	for i := range r.ours {
		v = append(v, r.theirs[i]/r.ours[i])
	}
	return median(v)
}

func (t *table) print(w io.Writer) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(tw, "\tours\tqemu-img\tratio\ttarget\t\tsync left to do\t\n")
	for _, r := range t.rows {
		if r.skipped != nil {
			fmt.Fprintf(tw, "%s\t\t\t\t\tnot measured: %v\t\t\n", r.name, r.skipped)
			continue
		}
		if r.theirs == nil {
			note := ""
			switch ours := median(r.ours); {
			case r.bytes > 0:
				note = fmt.Sprintf("%.0f MB/s", float64(r.bytes)/ours/1e6)
			case r.limit > 0:
				note = fmt.Sprintf("limit %v: %s", r.limit, verdict(ours <= r.limit.Seconds()))
			}
			fmt.Fprintf(tw, "%s\t%s\t\t\t\t%s\t\t\n", r.name, seconds(median(r.ours)), note)
			continue
		}
		synced := ""
		if s := median(r.synced); s > 0 {
			synced = seconds(s)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%.2f\t%.1f\t%s\t%s\t\n",
			r.name, seconds(median(r.ours)), seconds(median(r.theirs)), r.ratio(), r.want, verdict(r.ratio() >= r.want), synced)
	}
	_ = tw.Flush() // to standard output; there is nowhere else to complain
}

func verdict(ok bool) string {
	if ok {
		return "met"
	}
	return "MISSED"
}

func seconds(s float64) string {
	if s < 1 {
		return fmt.Sprintf("%.1f ms", s*1000)
	}
	return fmt.Sprintf("%.2f s", s)
}
