package fuseloop

import (
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/deathpoint"

	w "github.com/csi-vhdx/csi-driver-vhdx/internal/fusewire"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/uring"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
)

// accept takes the message of n bytes in big buffer b.
func (e *engine) accept(b int32, n int) {
	e.taken++
	i := e.freeReqs[len(e.freeReqs)-1]
	r := &e.reqs[i]
	r.buf, r.big = e.mem.small[i], none
	msg := e.mem.big[b][messageAt : messageAt+n]
	class, err := e.s.decode(msg, r)
	if err != nil {
		e.freeBigs = append(e.freeBigs, b)
		e.ended(fmt.Errorf("read /dev/fuse: %w", err))
		return
	}
	if class == classQuiet {
		e.freeBigs = append(e.freeBigs, b)
		return
	}
	e.freeReqs = e.freeReqs[:len(e.freeReqs)-1]
	if class == classData && r.n > smallIO {
		// The request keeps the big buffer, where WRITE's data is already.
		r.buf, r.big = e.mem.big[b], b
	} else {
		if class == classData && r.op == w.OpWrite {
			copy(r.buf[dataAt:], msg[dataAt-messageAt:])
		}
		e.freeBigs = append(e.freeBigs, b)
	}
	if class == classMeta {
		e.answer(i)
		return
	}
	if r.op == w.OpFsync {
		r.began = time.Now()
	}
	if !e.delays(i, r) {
		e.begin(i)
	}
}

// begin gives a request its place in the order of changes and, if nothing is
// before it there, launches it.
func (e *engine) begin(i int32) {
	r := &e.reqs[i]
	e.seq++
	r.seq = e.seq
	if e.mustWait(r) {
		r.state = stateParked
		e.parked = append(e.parked, i)
		return
	}
	e.launch(i)
}

// launch sends a request on one of its two ways.
func (e *engine) launch(i int32) {
	r := &e.reqs[i]
	if r.op == w.OpRead || r.op == w.OpWrite {
		if e.launchRing(i, r) {
			return
		}
	}
	r.state = stateSlow
	e.slow.submit(i, r.op)
	deathpoint.Reach(deathpoint.SlowQueued)
}

func (e *engine) launchRing(i int32, r *request) bool {
	s := e.s
	if e.ring == nil || s.pinner == nil || (r.off|r.n)&(s.align-1) != 0 || r.n == 0 {
		return false
	}
	at, pin, ok := s.pin(r.op == w.OpWrite, r.off, r.n)
	if !ok {
		return false
	}
	file := uint32(0) // a pin tells nothing else but by a FilePinner
	if s.files != nil {
		file = pin >> 1
	}
	if at&(s.align-1) != 0 || file != e.file && !e.takeFile(file, pin) {
		s.pinner.Unpin(pin)
		return false
	}
	r.pin, r.fileOff, r.state = pin, at, stateRing
	tag := tagPayload | uint64(uint32(i))
	payload := uring.Fixed(payloadSlot + int(file&1))
	if r.op == w.OpRead {
		e.ring.ReadFixed(payload, r.data(), at, tag)
	} else {
		e.ring.WriteFixed(payload, r.data(), at, tag)
	}
	return true
}

// takeFile tells the ring of the file that the image has now. What is queued or
// under way may still be in the one before, which has the other slot.
func (e *engine) takeFile(file, pin uint32) bool {
	fd, align := e.s.files.PinnedDescriptor(pin)
	if fd < 0 || int64(align) > e.s.align || e.ring.UpdateFile(payloadSlot+int(file&1), int32(fd)) != nil {
		return false // the image does it itself
	}
	e.file = file
	return true
}

// payloadDone takes the outcome of the ring's own I/O. What did not do all of
// it is done again by the image, from the start: reads and writes may be.
func (e *engine) payloadDone(i int32, res int32) {
	r := &e.reqs[i]
	e.s.pinner.Unpin(r.pin)
	deathpoint.Reach(deathpoint.RingDone)
	switch errno := syscall.Errno(-res); {
	case int64(res) == r.n:
		r.got = r.n
	case res >= 0, errno == unix.EAGAIN, errno == unix.EINTR, errno == unix.ECANCELED:
		r.state = stateSlow
		e.slow.submit(i, r.op)
		return
	default:
		r.errno = errnoOf(errno)
	}
	e.done(i)
}

// takeSlow takes back what the slow goroutines have done.
func (e *engine) takeSlow() {
	for _, i := range e.slow.take() {
		e.done(i)
	}
}

// done answers a request that has been carried out, unless it has to wait for space.
func (e *engine) done(i int32) {
	r := &e.reqs[i]
	if (r.errno != 0 || r.paused) && e.pauses(i) {
		return
	}
	e.finish(i)
}

// finish answers a request, whatever came of it.
func (e *engine) finish(i int32) {
	r := &e.reqs[i]
	e.carried++
	e.countDone(r)
	e.answer(i)
	if r.narrow {
		e.narrow--
	}
	if len(e.parked) > 0 {
		e.unpark()
	}
}

func (e *engine) countDone(r *request) {
	kind := r.kind()
	if kind == blockdev.Flush {
		e.s.count.Flushed(time.Since(r.began))
	}
	if r.errno != 0 {
		e.s.count.Failed(kind)
		return
	}
	n := r.n
	if kind == blockdev.Read {
		n = r.got
	}
	e.s.count.Done(kind, n)
}

// answer queues the reply. The request's memory is free once it is submitted:
// the kernel takes a reply whole and at once.
func (e *engine) answer(i int32) {
	r := &e.reqs[i]
	r.state = stateReplied
	if msg := r.reply(); e.ring == nil {
		e.writeReply(msg)
	} else {
		e.ring.WriteQuiet(fuseFD, msg, uring.NoOffset, tagReply|uint64(uint32(i)))
	}
	e.replied = append(e.replied, i)
	deathpoint.Reach(deathpoint.ReplyQueued)
}

// release frees the requests whose replies have been submitted.
func (e *engine) release() {
	if e.ring != nil && e.ring.Queued() > 0 {
		return
	}
	for _, i := range e.replied {
		e.free(i)
	}
	e.replied = e.replied[:0]
}

func (e *engine) free(i int32) {
	r := &e.reqs[i]
	if r.big != none {
		e.freeBigs = append(e.freeBigs, r.big)
		r.big = none
	}
	if r.spilled != nil {
		e.s.spills.give(r.spilled)
		r.spilled, r.buf = nil, nil
	}
	r.state = stateFree
	e.freeReqs = append(e.freeReqs, i)
}
