package metrics

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/node"
)

const (
	// MaxVolumes is how many volumes of a node have series of their own, 33
	// each. Those that came when there were as many share one set of them.
	MaxVolumes = 256
	// Others is the label of those.
	Others = "other"
)

// volumeSeries makes the series of a node's volumes. Who is named stays named,
// and who is not stays among the others, until it is detached: no counter goes
// down for a neighbour's sake (I-MET-4).
type volumeSeries struct {
	list func() []node.Status

	mu    sync.Mutex // scrapes may come side by side
	named map[string]bool
	rest  map[string]*blockdev.Counters
	gone  blockdev.Counts // of volumes that were among the others
}

func newVolumes(list func() []node.Status) prometheus.Collector {
	v := &volumeSeries{list: list, named: map[string]bool{}, rest: map[string]*blockdev.Counters{}}
	return collector(v.collect, volumes, problem, paused, waiting, health, requests, failures, bytes, flush, unnamed)
}

func (v *volumeSeries) collect(out chan<- prometheus.Metric) {
	v.mu.Lock()
	defer v.mu.Unlock()
	all := v.list()
	v.sort(all)
	states := map[node.State]int{}
	problems := 0
	for _, s := range all {
		states[s.State]++
		if s.State != node.StateServing && s.State != node.StateChanging && problems < MaxVolumes {
			problems++
			out <- problem.one(1, s.VolumeID, string(s.State))
			if s.Paused.On() {
				out <- paused.one(time.Since(s.Paused.Since).Seconds(), s.VolumeID)
				out <- waiting.one(float64(s.Paused.Waiting), s.VolumeID)
			}
			for _, e := range s.Wrong {
				out <- health.one(1, s.VolumeID, string(e.Status), e.Reason)
			}
		}
		if s.Count != nil && v.named[s.VolumeID] {
			series(out, s.VolumeID, s.Count.Load())
		}
	}
	for _, s := range node.States {
		out <- volumes.one(float64(states[s]), string(s))
	}
	out <- unnamed.one(float64(len(v.rest)))
	others := v.gone
	for _, c := range v.rest {
		others.Add(c.Load())
	}
	if others != (blockdev.Counts{}) {
		series(out, Others, others)
	}
}

// sort decides who is named.
func (v *volumeSeries) sort(all []node.Status) {
	served := map[string]*blockdev.Counters{}
	for _, s := range all {
		if s.Count != nil {
			served[s.VolumeID] = s.Count
		}
	}
	for id := range v.named {
		if served[id] == nil {
			delete(v.named, id)
		}
	}
	for id, c := range v.rest {
		if served[id] != c { // detached, and perhaps attached again since
			v.gone.Add(c.Load())
			delete(v.rest, id)
		}
	}
	for _, s := range all { // in their order, so that one start is like the next
		switch id := s.VolumeID; {
		case s.Count == nil || v.named[id] || v.rest[id] != nil:
		case len(v.named) < MaxVolumes:
			v.named[id] = true
		default:
			v.rest[id] = s.Count
		}
	}
}

// series are those of one volume.
func series(out chan<- prometheus.Metric, volume string, n blockdev.Counts) {
	for k := range blockdev.Kinds {
		kind := k.String()
		out <- requests.one(float64(n.Done[k]), volume, kind)
		out <- failures.one(float64(n.Failed[k]), volume, kind)
		if k != blockdev.Flush {
			out <- bytes.one(float64(n.Bytes[k]), volume, kind)
		}
	}
	buckets := make(map[float64]uint64, len(blockdev.FlushBounds))
	var upTo uint64
	for i, bound := range blockdev.FlushBounds {
		upTo += n.Flushes[i]
		buckets[bound.Seconds()] = upTo
	}
	upTo += n.Flushes[len(blockdev.FlushBounds)]
	out <- prometheus.MustNewConstHistogram(flush.desc, upTo, n.Flushed.Seconds(), buckets, volume)
}
