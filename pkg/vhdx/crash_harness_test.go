package vhdx_test

import (
	"flag"
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

var (
	_ vhdx.File        = (*vhdxtest.File)(nil)
	_ vhdx.HolePuncher = (*vhdxtest.File)(nil)
	_ vhdx.ZeroRanger  = (*vhdxtest.File)(nil)
	_ vhdx.Allocator   = (*vhdxtest.File)(nil)
)

var (
	crashImages = flag.Int("crash.images", 0, "distinct crash images to visit (default 100000, 3000 with -short, 500 with -race)")
	crashFirst  = flag.Uint64("crash.first", 1, "the first seed")
	crashSeed   = flag.Uint64("crash.seed", 0, "run this workload only")
	crashStep   = flag.String("crash.step", "", "with -crash.seed: cut at this step only, as a failure prints it: step.image/step.image/...")
)

// place is where in a run an image was made: the step of the medium and the
// number of the plan, once for every power cut it has been through.
type place []cut

type cut struct{ step, image int }

func (p place) String() string {
	var parts []string
	for _, c := range p {
		parts = append(parts, fmt.Sprintf("%d.%d", c.step, c.image))
	}
	return strings.Join(parts, "/")
}

// chance returns a number that depends on the seed and the place only.
func (p place) chance(seed uint64, what string) uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%d %s %s", seed, p, what)
	return h.Sum64() >> 8
}

// parsePlace reads what -crash.step holds; an image of -1 means all.
func parsePlace(s string) (place, error) {
	var p place
	for part := range strings.SplitSeq(s, "/") {
		step, image, found := strings.Cut(part, ".")
		c := cut{image: -1}
		var err error
		if c.step, err = strconv.Atoi(step); err != nil {
			return nil, fmt.Errorf("-crash.step=%s: %w", s, err)
		}
		if found {
			if c.image, err = strconv.Atoi(image); err != nil {
				return nil, fmt.Errorf("-crash.step=%s: %w", s, err)
			}
		}
		p = append(p, c)
	}
	return p, nil
}

// visits counts distinct images over all workloads.
type visits struct {
	want   int // enough; 0: never
	mu     sync.Mutex
	images map[uint64]struct{}
	opened int
}

func newVisits() *visits { return &visits{images: map[uint64]struct{}{}} }

func (v *visits) enough() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.want > 0 && len(v.images) >= v.want
}

func (v *visits) add(hash uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.images[hash] = struct{}{}
	v.opened++
}

func (v *visits) count() (distinct, opened int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.images), v.opened
}

// effort says how much is done at each step.
type effort struct {
	images   int // at each step of the workload
	deeper   int // at each step of what follows a first cut
	nested   int // of how many images one is cut again while it is opened
	replayed int // at about so many steps of the replay
	goOn     int // of how many images one is written on, and cut at each step of that
	ops      int // so many operations
	depth    int // cuts one after the other
}

// harness runs one workload and cuts its power everywhere.
type harness struct {
	seed   uint64
	opts   vhdx.OpenOptions
	effort effort
	visits *visits
	only   place
	random bool                     // the seed says all: it is TestCrash
	look   func(*vhdxtest.Snapshot) // instead of cuts: sees every step

	mu     sync.Mutex
	failed error
	tried  map[trial]bool
}

// trial is an image and the version of the model that it was judged by.
type trial struct {
	image   uint64
	model   *vhdxtest.Model
	version uint64
}

func newHarness(seed uint64, v *visits) *harness {
	return &harness{
		seed: seed, visits: v, tried: map[trial]bool{}, opts: vhdx.OpenOptions{}.NoTimers(),
		effort: effort{images: 14, deeper: 3, nested: 40, replayed: 12, goOn: 60, ops: 6, depth: 3},
	}
}

// fail keeps the first failure, with how to see it again.
func (h *harness) fail(snap *vhdxtest.Snapshot, at place, plan string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.failed == nil {
		h.failed = fmt.Errorf("seed %d, step.image %s, %s: %w\nnot durable then:\n%v%s", h.seed, at, plan, err, snap, h.repeat(at))
	}
}

// repeat tells the command that shows a failure again. A growth behind an
// operation may shift the steps: without -crash.step all are cut.
func (h *harness) repeat(at place) string {
	if !h.random {
		return ""
	}
	return fmt.Sprintf("reproduce: go test ./pkg/vhdx -run 'TestCrash$' -crash.seed=%d -crash.step=%s", h.seed, at)
}

func (h *harness) err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.failed
}

// wants reports whether a cut at depth len(at)-1 is to be made.
func (h *harness) wants(at place) bool {
	d := len(at) - 1
	return d >= len(h.only) || h.only[d].step == at[d].step && (h.only[d].image < 0 || at[d].image < 0 || h.only[d].image == at[d].image)
}

// session is an open of an image, as the cuts during it judge it.
type session struct {
	model *vhdxtest.Model // nil until live is called: most sessions write nothing
	watch vhdxtest.Watcher
	// start is the file before the open, and what it showed then.
	start    *vhdxtest.File
	headers  vhdxtest.Header
	observed *vhdxtest.Observed
	shrunk   bool              // the disk has become smaller since
	killed   bool              // this open followed a kill: the above are of the open before
	sum      uint64            // of the bytes observed
	before   *vhdxtest.Model   // of the session that the cut ended
	touched  []vhdxtest.Extent // by before, when the cut came
	journal  *journal          // of the image in use, or nil
	geometry
}

// geometry is what the harness must know of an image.
type geometry struct {
	blockSize int64
	payload   int64 // of the file, where the blocks begin
	sparse    int   // of the steps that write payload one in so many is cut; 0: all
	foreign   bool  // there may be blocks behind the end of the disk
}

// again returns the session as it was before anything was written.
func (s *session) again() *session {
	fresh := *s
	fresh.model, fresh.journal = nil, nil
	return &fresh
}

func (s *session) checkLive(p []byte, off int64) error { return s.model.CheckLive(p, off, nil) }

// live returns the model of a session that began with a power cut.
func (s *session) live() *vhdxtest.Model {
	if s.model == nil {
		s.model = s.before.After(s.observed)
	}
	return s.model
}

func newSession(start *vhdxtest.File, m *vhdxtest.Model, seen *vhdxtest.Observed) (*session, error) {
	hs, err := vhdxtest.Headers(start)
	if err != nil {
		return nil, err
	}
	return &session{model: m, start: start, headers: hs[0], observed: seen}, nil
}

// hook cuts at every step of a file.
func (h *harness) hook(s *session, before place, images int) func(*vhdxtest.Snapshot) {
	return func(snap *vhdxtest.Snapshot) {
		if h.look != nil {
			h.look(snap)
			return
		}
		at := append(before[:len(before):len(before)], cut{snap.Step(), -1})
		if h.err() != nil || h.visits.enough() || !h.wants(at) {
			return
		}
		if s.sparse > 0 && snap.Step()%s.sparse != 0 && snap.WritesAbove(s.payload) {
			return
		}
		if err := s.watch.Check(snap); err != nil {
			h.fail(snap, at, "write-ahead", err)
			return
		}
		if s.journal != nil {
			if err := h.judgeKilled(snap, s); err != nil {
				h.fail(snap, at, "killed", err)
				return
			}
		}
		h.cut(snap, s, at, images)
	}
}

// cut makes images of one step and judges each.
func (h *harness) cut(snap *vhdxtest.Snapshot, s *session, at place, images int) {
	if snap.Undecided() == 0 {
		images = 1
	}
	last := len(at) - 1
	for i := range images {
		at[last].image = i
		if h.err() != nil || !h.wants(at) {
			continue
		}
		plan := snap.Plan(h.seed, i)
		image := snap.Image(plan)
		t := trial{image.Hash(), s.model, s.model.Version()}
		h.mu.Lock()
		again := h.tried[t]
		h.tried[t] = true
		h.mu.Unlock()
		if again {
			continue
		}
		h.visits.add(t.image)
		if err := h.judge(image, s, at); err != nil {
			h.fail(snap, at, plan.Name, err)
		}
	}
}

// wantImages is how many distinct images a test visits.
func wantImages() int {
	switch {
	case *crashImages > 0:
		return *crashImages
	case raceEnabled:
		return 500
	case testing.Short():
		return 3000
	}
	return 100000
}
