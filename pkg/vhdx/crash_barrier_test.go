package vhdx_test

import (
	"slices"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// directed says which workload must notice that a barrier is missing.
type directed struct {
	workload string
	effort   effort
	seeds    uint64 // up to this one is tried
	first    uint64 // from this one on; 0: 1
}

var (
	plain   = effort{images: 15, deeper: 3, nested: 1000, replayed: 20, goOn: 1000, ops: 6, depth: 1}
	replays = effort{images: 4, deeper: 8, nested: 1, replayed: 30, goOn: 1000, ops: 6, depth: 2}
	goingOn = effort{images: 6, deeper: 3, nested: 1000, replayed: 12, goOn: 1, ops: 8, depth: 1}
)

// missing has a line for each barrier that package vhdx names.
var missing = map[string]directed{
	"sync FileWriteGuid before any other change":                {"few blocks", plain, 3, 0},
	"sync first log entry before LogGuid":                       {"few blocks", plain, 3, 0},
	"sync LogGuid and DataWriteGuid before data":                {"few blocks", plain, 5, 0},
	"sync file growth before use":                               {"few blocks", plain, 5, 0},
	"sync data and log entry before answering a flush":          {"few blocks", plain, 3, 0},
	"sync applied pages before Tail passes them":                {"log is full", plain, 3, 0},
	"sync advanced Tail before reusing log space":               {"log is full", plain, 3, 0},
	"sync replayed pages before clearing LogGuid":               {"few blocks", replays, 5, 0},
	"sync cleared LogGuid before reusing the log":               {"few blocks", goingOn, 10, 0},
	"sync applied pages before clearing LogGuid at close":       {"few blocks", plain, 10, 0},
	"sync cleared LogGuid before shrinking the file":            {"few blocks", plain, 10, 0},
	"sync the shortened file before Close returns":              {"few blocks", plain, 3, 0},
	"sync new BAT region before naming it":                      {"BAT moves", plain, 10, 0},
	"apply only what is durable in the log":                     {"more than the log", plain, 3, 0},
	"apply the logged copy, not the live page":                  {"log is full", plain, 3, 0},
	"write the first log entry before LogGuid":                  {"few blocks", plain, 3, 0},
	"hand out only proven-zero space":                           {"few blocks", goingOn, 5, 0},
	"prove abandoned space zero before reuse":                   {"failing writes", plain, 5, 0},
	"reuse freed space only after its freeing is durable":       {"discards", plain, 5, 0},
	"let requests leave freed space before it is punched":       {"discards", plain, 5, 0},
	"punch freed space before reuse":                            {"discards", plain, 5, 0},
	"hand out punched space only after a sync":                  {"discards", plain, 10, 0},
	"reuse the old BAT's place only when no log entry names it": {"BAT moves", plain, 10, 0},
	"record an unmapping before answering":                      {"discards and a journal", plain, 3, 0},
	"keep what inherited records free until the commit":         {"discards and a journal", plain, 20, 0},
	"log the smaller size before shortening the file":           {"compaction", plain, 10, 0},
	"cut what lies beyond the end before the size":              {"grow and shrink", goingOn, 20, 0},
	"hide the parent before the size":                           {"child of a larger parent", plain, 5, 0},
	"forget what hides the parent after the size":               {"child of a larger parent", plain, 5, 0},
	"sync a moved block before logging its place":               {"compaction", plain, 10, 0},
	"write payload before publishing its mapping":               {"journal", plain, 3, 0},
	"record a mapping before answering":                         {"journal", plain, 3, 0},
	"drop records after the commit":                             {"journal", plain, 3, 0},
	"announce FileWriteGuid to the journal":                     {"journal", plain, 3, 0},
	"freeze the head before its child takes its place":          {"rotate", plain, 3, 0},
	"announce the child to the journal":                         {"rotate", plain, 3, 0},
	"accept the GUID of a merge before the parent has it":       {"merge", plain, 3, 0},
	"accept the child's GUID before the parent takes it":        {"merge", plain, 3, 0},
	"mark the progress of a collapse after its flush":           {"replace", plain, 5, 0},
	"log bits before the table that moves":                      {"child whose BAT moves", plain, 25, 6},
	"sync data before logging its bits":                         {"child", plain, 5, 0},
	"log bits no later than the table":                          {"child and more than one entry", plain, 3, 0},
	"clear stale bits before they count":                        {"child and more than one entry", goingOn, 5, 0},
}

// The harness proves itself: with any one barrier left out it must fail.
func TestHarnessNoticesMissingBarrier(t *testing.T) {
	skipSlowRace(t)
	names := slices.Concat(vhdx.Barriers(), vhdx.JournalRules())
	for name := range missing {
		if !slices.Contains(names, name) {
			t.Errorf("package vhdx has no barrier %q", name)
		}
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, ok := missing[name]
			if !ok {
				t.Fatalf("no workload is directed at this barrier")
			}
			noticeMissing(t, name, d)
		})
	}
}

func noticeMissing(t *testing.T, name string, d directed) {
	if run := worldWorkloads[d.workload]; run != nil {
		for seed := max(1, d.first); seed <= d.seeds; seed++ {
			w, err := newWorld(seed)
			if err != nil {
				t.Fatal(err)
			}
			w.opts = w.opts.Omit(name)
			if err := run(w); err != nil {
				t.Logf("noticed after %d images: %v", w.judged, err)
				return
			}
		}
		t.Errorf("left out, and %d runs of %q show nothing", d.seeds, d.workload)
		return
	}
	i := slices.IndexFunc(workloads, func(w *workload) bool { return w.name == d.workload })
	if i < 0 {
		t.Fatalf("there is no workload %q", d.workload)
	}
	v := newVisits()
	for seed := max(1, d.first); seed <= d.seeds; seed++ {
		h := newHarness(seed, v)
		h.opts, h.effort = h.opts.Omit(name), d.effort
		if err := h.runWorkload(workloads[i]); err != nil {
			images, _ := v.count()
			t.Logf("noticed after %d images: %v", images, err)
			return
		}
	}
	images, _ := v.count()
	t.Errorf("left out, and %d images of %d runs of %q show nothing", images, d.seeds, d.workload)
}
