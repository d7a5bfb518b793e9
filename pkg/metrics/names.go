package metrics

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// Kind of a metric, as Prometheus calls it.
type Kind string

// The kinds.
const (
	Counter   Kind = "counter"
	Gauge     Kind = "gauge"
	Histogram Kind = "histogram"
)

// Metric is one name with what a person needs to know of it.
type Metric struct {
	Name   string
	Kind   Kind
	Labels []string
	Help   string // what it is; also on /metrics
	Advice string // what to do about it
	// Service that has it: "controller", "node", or "" for both.
	Service string

	desc *prometheus.Desc
}

const prefix = "vhdx_csi_"

// All are the metrics of the plugin, in the order of the reference page. Besides
// them there are those of the Go runtime (go_) and of the process (process_).
var All []*Metric

func metric(service, name string, kind Kind, help, advice string, labels ...string) *Metric {
	m := &Metric{Name: prefix + name, Kind: kind, Labels: labels, Help: help, Advice: advice, Service: service}
	m.desc = prometheus.NewDesc(m.Name, help, labels, nil)
	All = append(All, m)
	return m
}

// Of every process.
var (
	buildInfo = metric("", "build_info", Gauge, "1; the labels say what runs.",
		"More than one version for longer than an update takes: some pods have not been replaced.", "version", "mode", "goversion")
	rpcDuration = metric("", "rpc_duration_seconds", Histogram, "How long CSI calls took until they were answered, by method and gRPC code.",
		"Codes other than OK, Aborted and NotFound: the plugin's log has the reason of each. Aborted again and again: an earlier call for that volume still runs.", "method", "code")
	events = metric("", "kubernetes_events_total", Counter, "Events for Kubernetes by what became of them: written, failed (the API server refused or did not answer), dropped (too many at once).",
		"failed rising: check the role of the service account (events: create, patch) and the way to the API server. No volume depends on it.", "outcome")
)

// Of the pools.
var (
	poolUp = metric("", "pool_up", Gauge, "1 if the pool's share answers, 0 if it fails or has not answered in time.",
		"0: look at the mount and the server. I/O of the volumes there waits; nothing is lost by waiting.", "pool")
	poolSeen = metric("", "pool_seen_timestamp_seconds", Gauge, "When the pool's bytes were seen last, Unix time.",
		"Old while pool_up is 1: cannot be; report it.", "pool")
	poolTotal = metric("", "pool_total_bytes", Gauge, "Size of the pool's filesystem.", "", "pool")
	poolFree  = metric("", "pool_free_bytes", Gauge, "Free bytes of the pool's filesystem.",
		"Near zero: make room or grow the share before writes fail; trim the filesystems of the volumes (fstrim) to give back what they deleted.", "pool")
	poolReserve = metric("", "pool_reserve_bytes", Gauge, "What is never promised to a volume (--pool=...,reserve=).", "", "pool")
	poolHealth  = metric("", "pool_health", Gauge, "1 for what is wrong with a pool, as the health calls of CSI name it: PoolUnreachable, PoolNearFull, PoolFull.",
		"The reference page of the health calls has a line for each reason.", "pool", "reason")
	poolCommitted = metric("controller", "pool_committed_bytes", Gauge, "What all volumes may grow to, with all overhead.",
		"Above pool_total_bytes: overcommitted; watch pool_free_bytes.", "pool")
	poolAvailable = metric("controller", "pool_available_bytes", Gauge, "The largest volume that may still be created.",
		"0: creations are refused with ResourceExhausted. Delete volumes, grow the share, or raise overcommit=.", "pool")
	poolLogical = metric("controller", "pool_logical_bytes", Gauge, "Sum of the sizes of all volumes, as their devices have them.", "", "pool")
	poolAlloc   = metric("controller", "pool_allocated_bytes", Gauge, "What all images take in the filesystem, those of snapshots and of deleted volumes included.",
		"Much less than total - free: something else fills the share.", "pool")
	poolPinned = metric("controller", "pool_snapshot_pinned_bytes", Gauge, "What of the allocated bytes is kept for snapshots, and for volumes that were made of them.",
		"Much of pool_allocated_bytes: deleting snapshots makes room, once no volume stands on them.", "pool")
	poolVolumes = metric("controller", "pool_volumes", Gauge, "Volumes in the pool.", "", "pool")
	poolCensus  = metric("controller", "pool_census_timestamp_seconds", Gauge, "When logical, allocated and pinned bytes and volumes were counted last, Unix time.",
		"Every 5 minutes, or in large pools ten times what a count takes.", "pool")
)

// Of the images that are frozen below volumes.
var (
	layersMerged = metric("controller", "layers_merged_total", Counter, "Images that layers nobody needs were merged into.", "")
	layersFreed  = metric("controller", "layers_removed_total", Counter, "Frozen images that were removed, since nobody needs them.", "")
	bytesFreed   = metric("controller", "layers_freed_bytes_total", Counter, "What those took in the filesystem.",
		"Standing still while snapshots are deleted: the controller's log says what is in the way.")
)

// Of a node's volumes.
var (
	volumes = metric("node", "volumes", Gauge, "Volumes that this node knows, by state: serving, changing (a call is at work), waiting (requests are held until there is a server again), quarantined (has killed its server three times), poisoned (takes no write since a failed sync), paused (writes wait for space on the share), readonly (its filesystem has stopped for an error), dead (requests fail), left (could not be taken down), failed (could not be staged).",
		"Anything but serving and changing for more than a minute: volume_problem names it.", "state")
	problem = metric("node", "volume_problem", Gauge, "1 for each volume that is neither serving nor changing.",
		"waiting: its share. paused: make room on it. failed: the Events of its pod. quarantined, poisoned, dead: see the Events of its PersistentVolume and the explanation of worker deaths.", "volume", "state")
	paused = metric("node", "volume_paused_seconds", Gauge, "How long writes of a volume have been waiting for space on its share. Not there for a volume that is not paused.",
		"Make room on the share, or grow it: they go on within a second. Or have the volume fail with onFull: error.", "volume")
	waiting = metric("node", "volume_paused_requests", Gauge, "How many requests of a paused volume wait.",
		"128: its reads and flushes wait too.", "volume")
	health = metric("node", "volume_health", Gauge, "1 for each thing that is wrong with a volume on this node, as the health calls of CSI name it; status is degraded, inaccessible or dataLoss.",
		"The reference page of the health calls has a line for each reason.", "volume", "status", "reason")
	requests = metric("node", "volume_requests_total", Counter, "Requests that a volume's device has carried out, by kind: read, write, zero, discard, flush.", "", "volume", "kind")
	failures = metric("node", "volume_request_errors_total", Counter, "Requests that were answered with an error.",
		"Any: pods got I/O errors. Look at the share and at volume_problem.", "volume", "kind")
	bytes = metric("node", "volume_bytes_total", Counter, "Bytes of the requests carried out; flushes have none.", "", "volume", "kind")
	flush = metric("node", "volume_flush_duration_seconds", Histogram, "How long a volume's flushes took, from their arrival to their answer.",
		"Rising: the share's sync got slower, or more volumes flush at once.", "volume")
	unnamed = metric("node", "volumes_unnamed", Gauge, fmt.Sprintf("Served volumes that share the label volume=%q, since there are more than %d.", Others, MaxVolumes), "")
	replays = metric("node", "log_replays_total", Counter, "Replays of images' logs, counted over the deaths of workers.",
		"A replay follows the death of a worker, of the node or of its power, and never an orderly end.")
	replaySeconds = metric("node", "log_replay_seconds_total", Counter, "How long these replays took, together.", "")
	replayEntries = metric("node", "log_replayed_entries_total", Counter, "Log entries that they replayed.", "")
)

// Of a node's processes.
var (
	restarts = metric("node", "worker_restarts_total", Counter, "Workers that the supervisor has replaced, by how they ended: killed (from outside), failed (an exit, a panic, out of memory), hung (no sign of life). Counted over their deaths; begins at zero with the supervisor.",
		"failed or hung: a bug, a sick image or too little memory; the log names the cause, and the volume if one is to blame. The pods saw a pause.", "kind")
	gap = metric("node", "worker_gap_seconds", Gauge, "How long nobody served this node's devices at the last death of a worker: from its end, or its last sign of life, until its successor served all devices it could. 0: no worker has died.",
		"I/O was held for so long; none of it failed. Volumes still waiting after that are in volumes.")
	recovered = metric("node", "recovered_volumes", Gauge, "What became of the volumes of an earlier process when this one started: resumed, waiting, torn down, dropped, kept, set aside.",
		"torn down while pods used it: they need a restart.", "outcome")
	keeperUp = metric("node", "keeper_up", Gauge, "1 while a keeper holds this node's devices.",
		"0: the death of the worker would now cost the volumes in use. Start the keeper; it is given everything at once.")
)

// one makes a sample.
func (m *Metric) one(value float64, labels ...string) prometheus.Metric {
	kind := prometheus.GaugeValue
	if m.Kind == Counter {
		kind = prometheus.CounterValue
	}
	return prometheus.MustNewConstMetric(m.desc, kind, value, labels...)
}

func (m *Metric) histogram(buckets []float64) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: m.Name, Help: m.Help, Buckets: buckets}, m.Labels)
}

func (m *Metric) counter() *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: m.Name, Help: m.Help}, m.Labels)
}
