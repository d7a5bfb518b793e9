package main

import (
	"math/rand/v2"
	"regexp"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/deathpoint"
)

// kind is a way to kill.
type kind string

const (
	killAtRandom   kind = "at random"           // kill -9 of the worker
	killAtPoint    kind = "at a point"          // it kills itself at a point of internal/deathpoint
	killSuccessor  kind = "and its successor"   // kill -9, and the next worker dies while it takes over
	killCalls      kind = "while calls run"     // kill -9 while a volume comes or goes
	killStopped    kind = "while stopped"       // SIGSTOP, then kill -9
	killHang       kind = "hang"                // SIGSTOP; the supervisor has to notice
	killOOM        kind = "out of memory"       // the kernel's out-of-memory killer
	killPressure   kind = "under pressure"      // kill -9 while memory is being reclaimed
	killSupervisor kind = "with its supervisor" // kill -9 of the supervisor; the worker dies with it
	killKeeper     kind = "after its keeper"    // kill -9 of the keeper, and a little later of the worker
	restart        kind = "an orderly restart"  // SIGTERM, new plugin; it counts as no kill
	pointMissed    kind = "point not come to"   // armed, never reached in time; it counts as no kill
)

// shot is one entry of the plan.
type shot struct {
	kind  kind
	point deathpoint.Point // of killAtPoint and killSuccessor
}

// pressureRun is how many kills in a row happen under one spell of pressure.
const pressureRun = 2

// how says what brings the worker to a point.
type how uint8

const (
	byLoad     how = iota // the writers do
	byFlush               // so do they, and flush more often
	byTakeover            // a death does
	byCalls               // a volume comes, or goes
	byEnd                 // an orderly end does
	byNothing             // see unreached
)

func (h how) kind() kind {
	switch h {
	case byTakeover:
		return killSuccessor
	case byEnd:
		return killSupervisor
	}
	return killAtPoint
}

func wayTo(p deathpoint.Point) how {
	switch {
	case unreached[p] != "":
		return byNothing
	case p >= deathpoint.BlockClaimed && p <= deathpoint.SpacePunched, p == deathpoint.RingDone,
		p == deathpoint.ZeroDone, p == deathpoint.SlowQueued, p == deathpoint.ReplyQueued:
		return byLoad
	case p >= deathpoint.EntryWritten && p <= deathpoint.LapEnded, p == deathpoint.FlushBegun, p == deathpoint.FlushDone:
		return byFlush
	case p >= deathpoint.GUIDAnnounced && p <= deathpoint.LogPublished,
		p >= deathpoint.ReplayBegun && p <= deathpoint.TakeoverCommitted,
		p >= deathpoint.ResumeTaken && p <= deathpoint.ResumeDone,
		p >= deathpoint.NodeClaimed && p <= deathpoint.NodeResumed:
		return byTakeover
	case p == deathpoint.HelperSyncfs, p == deathpoint.NodeReleased:
		return byEnd
	}
	return byCalls
}

// unreached are the points that no death of a worker leads to, and why.
var unreached = map[deathpoint.Point]string{
	deathpoint.HelperRead:      "asks a device that has been lost whether it is dead",
	deathpoint.HelperFreeze:    "begins a snapshot, and this program takes none",
	deathpoint.HelperThaw:      "thaws what a process has left frozen that was killed together with its worker",
	deathpoint.HelperLoopAlive: "asks a device whose connection nobody holds",
	deathpoint.HelperStay:      "takes back a removal that a death has cut off half-way, which takes luck",
	deathpoint.NodeGrown:       "the pool has grown the image itself, unless it was open just then",
}

// kills is how many a shot makes.
func (s shot) kills() int {
	switch s.kind {
	case killSuccessor:
		return 2
	case restart:
		return 0
	}
	return 1
}

// plan makes the order of n kills, or of 100 if n is less: each kind is in it,
// and every point.
func plan(n int, only *regexp.Regexp, rng *rand.Rand) []shot {
	full := max(n, allPoints)
	var groups [][]shot
	sum := 0
	add := func(times int, s ...shot) {
		sum += max(1, times) * len(s) * s[0].kills()
		if only != nil && !only.MatchString(string(s[0].kind)) && !(s[0].point > 0 && only.MatchString(s[0].point.String())) {
			return
		}
		for range max(1, times) {
			groups = append(groups, s)
		}
	}
	for _, p := range deathpoint.All() {
		if h := wayTo(p); h != byNothing {
			add(full/200, shot{h.kind(), p})
		}
	}
	for _, k := range []struct {
		kind kind
		per  int
	}{{killHang, 100}, {killStopped, 50}, {killOOM, 50}, {killSupervisor, 100}, {killKeeper, 100}, {killCalls, 50}, {restart, 50}} {
		add(full/k.per, shot{kind: k.kind})
	}
	pressed := make([]shot, pressureRun)
	for i := range pressed {
		pressed[i].kind = killPressure
	}
	add(full/40/pressureRun, pressed...)
	add(full-sum, shot{kind: killAtRandom})
	rng.Shuffle(len(groups), func(i, j int) { groups[i], groups[j] = groups[j], groups[i] })
	var all []shot
	for _, g := range groups {
		all = append(all, g...)
	}
	return all
}
