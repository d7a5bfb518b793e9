package blockdev

import (
	"sync/atomic"
	"time"
)

// Kind of a request that a device has carried out.
type Kind uint8

// The kinds. Kinds is how many there are.
const (
	Read    Kind = iota
	Write        // with data
	Zero         // without: the range reads zero and keeps its space
	Discard      // the range reads zero, its space may go
	Flush
	Kinds
)

var kindNames = [Kinds]string{"read", "write", "zero", "discard", "flush"}

func (k Kind) String() string { return kindNames[k] }

// FlushBounds are the upper bounds of the buckets of [Counters.Flushes]; one
// more bucket is above them all.
var FlushBounds = [...]time.Duration{
	250 * time.Microsecond, 500 * time.Microsecond, time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond,
	10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond,
	500 * time.Millisecond, time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second, 30 * time.Second,
}

// Counters are what one device has done since it was attached or resumed. Its
// server alone adds to them, from one thread; anybody may read them at any time.
// They have cache lines of their own, so counting waits for no other device.
type Counters struct {
	_    [cacheLine]byte
	kind [Kinds]struct{ done, failed, bytes atomic.Uint64 }
	// flushes by how long they took, from their arrival to their answer.
	flushes [len(FlushBounds) + 1]atomic.Uint64
	flushed atomic.Int64 // the sum of that, ns
	_       [cacheLine]byte
}

const cacheLine = 64

// Done counts a request that was carried out, of n bytes.
func (c *Counters) Done(k Kind, n int64) {
	c.kind[k].done.Add(1)
	c.kind[k].bytes.Add(uint64(n))
}

// Failed counts one that was answered with an error.
func (c *Counters) Failed(k Kind) { c.kind[k].failed.Add(1) }

// Flushed notes how long a flush took, whatever came of it.
func (c *Counters) Flushed(took time.Duration) {
	i := 0
	for i < len(FlushBounds) && took > FlushBounds[i] {
		i++
	}
	c.flushes[i].Add(1)
	c.flushed.Add(int64(took))
}

// Counts is what Counters say at one time.
type Counts struct {
	// By kind: requests carried out, requests that failed, bytes of the former.
	Done, Failed, Bytes [Kinds]uint64
	// Flushes by how long they took: bucket i holds those up to FlushBounds[i]
	// that are in no bucket before it.
	Flushes [len(FlushBounds) + 1]uint64
	Flushed time.Duration // all of them together
}

// Load reads the counters. Each is right by itself; requests may be counted
// between one and the next.
func (c *Counters) Load() Counts {
	var n Counts
	for k := range c.kind {
		n.Done[k], n.Failed[k], n.Bytes[k] = c.kind[k].done.Load(), c.kind[k].failed.Load(), c.kind[k].bytes.Load()
	}
	for i := range c.flushes {
		n.Flushes[i] = c.flushes[i].Load()
	}
	n.Flushed = time.Duration(c.flushed.Load())
	return n
}

// Add adds what other devices have done.
func (n *Counts) Add(m Counts) {
	for k := range n.Done {
		n.Done[k] += m.Done[k]
		n.Failed[k] += m.Failed[k]
		n.Bytes[k] += m.Bytes[k]
	}
	for i := range n.Flushes {
		n.Flushes[i] += m.Flushes[i]
	}
	n.Flushed += m.Flushed
}
