// Package metrics holds every metric of the plugin: its name, what it means and
// what to do about it. It alone imports prometheus.
//
// A scrape reads memory and nothing else. What a volume's device does is counted
// where it is served, in atomic counters of its own, and read at the scrape.
// What a pool has is looked at in the background; see [pool.Watch]. So neither a
// share that hangs nor a volume that waits holds up a scrape, and a scrape holds
// up no request.
//
// Invariants:
//
//	I-MET-1  A scrape touches no share, no device, no API server and no keeper.
//	I-MET-2  No label takes more than a fixed number of values: volumes are at most [MaxVolumes], and what they share once they are more.
//	I-MET-3  A volume has series for as long as this process serves its device, and no longer.
//	I-MET-4  No counter goes down in the life of the process, but that of a volume that was attached anew.
//
// Every counter begins at zero with the process, so also when the supervisor
// replaces the worker; rate() and increase() see that. Only the worker's restarts
// and the replays of logs are counted over its death.
package metrics
