// Package events tells Kubernetes what an operator must know: that a volume
// waits, fails or must not be used, that a pool runs full or does not answer,
// that the worker or the keeper of a node has been replaced.
//
// A [Watcher] compares what the node, the pools and the supervisor say with what
// they said before, and makes an [Event] of what has changed. A [Recorder] writes
// Events to the API server. It alone knows that there is one.
//
// Invariants:
//
//	I-EVT-1  Nobody waits for the API server: what it does not take in time is dropped, and counted.
//	I-EVT-2  What is kept in memory for Events is bounded, whatever happens how often.
//	I-EVT-3  No secret and no credential reaches an Event.
//	I-EVT-4  A state is told once when it begins and once when it ends, by one process.
package events
