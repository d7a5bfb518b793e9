package vhdx_test

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestCrash cuts the power of random workloads at every step of the medium,
// in many ways each, and proves that every image opens and shows the flushed
// data, old or new sectors where nothing was flushed, and no foreign byte;
// that its replay may be cut as well, and that it can be written on.
func TestCrash(t *testing.T) {
	if *crashSeed > 0 {
		oneSeed(t)
		return
	}
	defer debug.SetGCPercent(debug.SetGCPercent(800)) // images die young
	v := newVisits()
	v.want = wantImages()
	var seeds atomic.Uint64
	seeds.Store(*crashFirst - 1)
	var failed atomic.Bool
	began := time.Now()
	progress := func() {
		distinct, opened := v.count()
		t.Logf("%d of %d distinct images, %d judged, seeds %d to %d, %v", distinct, v.want, opened, *crashFirst, seeds.Load(), time.Since(began).Round(time.Second))
	}
	over := make(chan struct{})
	go func() {
		for {
			select {
			case <-over:
				return
			case <-time.After(30 * time.Second):
				progress()
			}
		}
	}()
	var wg sync.WaitGroup
	for range max(2, runtime.GOMAXPROCS(0)) {
		wg.Go(func() {
			for !failed.Load() && !v.enough() {
				if err := crashSeedOnce(seeds.Add(1), v, nil); err != nil {
					failed.Store(true)
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	over <- struct{}{} // no line after the test's end
	distinct, _ := v.count()
	t.Attr("images", strconv.Itoa(distinct))
	progress()
}

// oneSeed repeats what a failure printed.
func oneSeed(t *testing.T) {
	var only place
	if *crashStep != "" {
		var err error
		if only, err = parsePlace(*crashStep); err != nil {
			t.Fatal(err)
		}
	}
	v := newVisits()
	if err := crashSeedOnce(*crashSeed, v, only); err != nil {
		t.Error(err)
	}
	distinct, opened := v.count()
	t.Logf("%d distinct images, %d judged", distinct, opened)
}

// crashSeedOnce runs the workload that a seed stands for.
func crashSeedOnce(seed uint64, v *visits, only place) error {
	h := newHarness(seed, v)
	kind := workloads[seed%uint64(len(workloads))]
	if raceEnabled && *crashSeed == 0 {
		kind, h.effort.images = workloads[len(workloads)-1], 2 // the one with writers at once
	}
	h.only, h.random = only, true
	if kind.images > 0 {
		h.effort.images = kind.images
	}
	if err := h.runWorkload(kind); err != nil {
		return fmt.Errorf("workload %q: %w", kind.name, err)
	}
	return nil
}

// skipSlowRace skips what takes minutes under the race detector and has
// nothing for it to find; the pass without the detector runs it.
func skipSlowRace(t *testing.T) {
	t.Helper()
	if raceEnabled {
		t.Skip("too slow under the race detector: run it without")
	}
}
