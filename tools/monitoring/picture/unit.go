package main

import (
	"fmt"
	"image/color"
	"math"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/vg"
)

// inUnit writes a value as Grafana does in that unit.
func inUnit(unit string, v float64) string {
	short := func(f float64) string { return strconv.FormatFloat(f, 'g', 3, 64) }
	scaled := func(base float64, names ...string) string {
		i := 0
		for i < len(names)-1 && math.Abs(v) >= base {
			v /= base
			i++
		}
		if v >= 100 {
			return strconv.FormatFloat(v, 'f', 0, 64) + names[i]
		}
		return short(v) + names[i]
	}
	switch unit {
	case "bytes":
		return scaled(1024, " B", " KiB", " MiB", " GiB", " TiB")
	case "Bps":
		return scaled(1000, " B/s", " kB/s", " MB/s", " GB/s")
	case "iops":
		return scaled(1000, " io/s", "k io/s", "M io/s")
	case "reqps":
		return scaled(1000, " req/s", "k req/s")
	case "percentunit":
		return short(v*100) + " %"
	case "s":
		switch a := math.Abs(v); {
		case a == 0:
			return "0 s"
		case a < 1e-3:
			return short(v*1e6) + " µs"
		case a < 1:
			return short(v*1e3) + " ms"
		}
		return short(v) + " s"
	}
	return scaled(1000, "", "k", "M")
}

// ticks has its labels in a unit.
type ticks struct{ unit string }

func (u ticks) Ticks(lo, hi float64) []plot.Tick {
	scale := 1.0
	for u.unit == "bytes" && hi/scale >= 1024 { // round numbers of what they are written in
		scale *= 1024
	}
	all := plot.DefaultTicks{}.Ticks(lo/scale, hi/scale)
	for i, t := range all {
		all[i].Value *= scale
		if t.Label != "" {
			all[i].Label = inUnit(u.unit, all[i].Value)
		}
	}
	return all
}

// entry is one of a legend.
type entry struct {
	name  string
	color color.Color
	width vg.Length
}

// The most that a legend shows.
const (
	legendLines = 3
	longestName = 34
)

// entries arranges a legend in lines of a width. What does not fit is counted.
func entries(lines []line, width vg.Length) (arranged [][]entry) {
	var used vg.Length
	for i, l := range lines {
		name := l.name
		if n := len(name); n > longestName {
			name = name[:10] + "…" + name[n-(longestName-11):]
		}
		e := entry{name, colors[i%len(colors)], vg.Length(len(name))*3.4 + 17}
		if len(arranged) == 0 || used+e.width > width {
			if len(arranged) == legendLines {
				last := arranged[len(arranged)-1]
				last[len(last)-1].name = fmt.Sprintf("and %d more", len(lines)-i+1)
				return arranged
			}
			arranged, used = append(arranged, nil), 0
		}
		used += e.width
		arranged[len(arranged)-1] = append(arranged[len(arranged)-1], e)
	}
	return arranged
}
