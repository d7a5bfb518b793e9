package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/deathpoint"
)

// result is what a run has seen.
type result struct {
	seed     uint64
	kills    int
	byKind   map[kind]int
	atPoint  map[deathpoint.Point]int
	missed   map[deathpoint.Point]int // armed, not come to
	never    []deathpoint.Point       // not even once
	errors   int64
	wrong    int64
	read     int64 // bytes read back and compared
	took     time.Duration
	notes    []string
	gaps     map[kind][]time.Duration
	imitated bool // out-of-memory kills are plain kills
}

func newResult(seed uint64) *result {
	return &result{seed: seed, byKind: map[kind]int{}, atPoint: map[deathpoint.Point]int{}, missed: map[deathpoint.Point]int{}, gaps: map[kind][]time.Duration{}}
}

// summary is the result as JSON shows it. Gaps are in milliseconds.
type summary struct {
	Seed        uint64                `json:"seed"`
	Kills       int                   `json:"kills"`
	ByKind      map[string]int        `json:"byKind"`
	IOErrors    int64                 `json:"ioErrors"`
	WrongBytes  int64                 `json:"wrongSectors"`
	ReadBack    int64                 `json:"bytesReadBack"`
	Seconds     float64               `json:"seconds"`
	Gaps        map[string]gapSummary `json:"gapsMilliseconds"`
	DiedAt      map[string]int        `json:"diedAt"`
	NeverAt     []string              `json:"pointsNeverReached"`
	MissedAt    map[string]int        `json:"pointsMissed"`
	OOMImitated bool                  `json:"outOfMemoryImitated"`
	Notes       []string              `json:"notes,omitempty"`
}

type gapSummary struct {
	Count int     `json:"count"`
	P50   float64 `json:"p50"`
	P99   float64 `json:"p99"`
	Max   float64 `json:"max"`
}

// allButHangs is the line that a goal is set for: a hang is noticed by its
// heartbeat first, and an orderly restart and the supervisor's death start more
// than a worker.
const allButHangs = "all kills of a worker"

func (r *result) summary() summary {
	s := summary{
		Seed: r.seed, Kills: r.kills, ByKind: map[string]int{}, IOErrors: r.errors, WrongBytes: r.wrong, ReadBack: r.read,
		Seconds: r.took.Seconds(), Gaps: map[string]gapSummary{}, DiedAt: map[string]int{}, NeverAt: []string{}, MissedAt: map[string]int{},
		OOMImitated: r.imitated, Notes: r.notes,
	}
	var all []time.Duration
	for k, n := range r.byKind {
		s.ByKind[string(k)] = n
	}
	for k, gaps := range r.gaps {
		s.Gaps[string(k)] = summarise(gaps)
		if k != killHang && k != killSupervisor && k != restart {
			all = append(all, gaps...)
		}
	}
	if len(all) > 0 {
		s.Gaps[allButHangs] = summarise(all)
	}
	for p, n := range r.atPoint {
		s.DiedAt[p.String()] = n
	}
	for p, n := range r.missed {
		s.MissedAt[p.String()] = n
	}
	for _, p := range r.never {
		s.NeverAt = append(s.NeverAt, p.String())
	}
	return s
}

func summarise(gaps []time.Duration) gapSummary {
	gaps = slices.Sorted(slices.Values(gaps))
	at := func(q float64) float64 {
		return float64(gaps[min(len(gaps)-1, int(q*float64(len(gaps))))].Round(100*time.Microsecond)) / float64(time.Millisecond)
	}
	return gapSummary{len(gaps), at(0.50), at(0.99), at(1)}
}

func (r *result) print(out io.Writer) {
	s := r.summary()
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "kills\t\tgap p50\tp99\tlongest\t")
	line := func(name string, n int, g gapSummary) {
		fmt.Fprintf(w, "%d\t%s\t%.0f ms\t%.0f ms\t%.0f ms\t\n", n, name, g.P50, g.P99, g.Max)
	}
	for _, k := range slices.SortedFunc(maps.Keys(s.ByKind), func(a, b string) int { return cmp.Or(s.ByKind[b]-s.ByKind[a], strings.Compare(a, b)) }) {
		line(k, s.ByKind[k], s.Gaps[k])
	}
	if g, ok := s.Gaps[allButHangs]; ok {
		line(allButHangs, g.Count, g)
	}
	_ = w.Flush() // to a terminal; nothing is to be done about it
	fmt.Fprintf(out, "died at %d of %d points of the code\n", len(s.DiedAt), len(deathpoint.All()))
	if len(s.NeverAt) > 0 {
		fmt.Fprintln(out, "never reached:", strings.Join(s.NeverAt, ", "))
	}
	for _, p := range slices.Sorted(maps.Keys(s.MissedAt)) {
		fmt.Fprintf(out, "armed %d times and not come to: %s\n", s.MissedAt[p], p)
	}
	for _, n := range s.Notes {
		fmt.Fprintln(out, "note:", n)
	}
	fmt.Fprintf(out, "%d kills, %d I/O errors, %d wrong sectors; %.1f GiB read back in %s (seed %d)\n",
		s.Kills, s.IOErrors, s.WrongBytes, float64(s.ReadBack)/(1<<30), r.took.Round(time.Second), s.Seed)
}
