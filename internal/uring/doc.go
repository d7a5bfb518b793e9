// Package uring is a small io_uring: what a server of block I/O needs of it,
// in Go, without cgo.
//
// One goroutine, locked to its thread, makes the ring and is the only one to
// touch it (SINGLE_ISSUER, DEFER_TASKRUN: completions are only produced while
// that thread waits for them, on its own CPU, in batches). Others wake it
// through a [Waker].
//
//	r, err := uring.New(256)     // on the locked thread
//	r.Read(fd, buf, off, tag)    // queue
//	r.Enter(1)                   // submit all, wait for one
//	for r.Next(&c) { ... }       // c.Tag, c.Res
//
// What an operation reads or writes must stay where it is until its completion
// has been seen: use [Map], not the Go heap, so that memory is resident too.
//
// Invariants:
//
//	I-URING-1  No call but New, Register* and Close allocates or blocks, except Enter with wait > 0.
//	I-URING-2  An operation queued is submitted by the next Enter; none is lost when the queue is full.
//	I-URING-3  Memory of Map is resident and locked, or Map fails.
package uring
