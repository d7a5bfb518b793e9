package fuseloop

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/uring"
)

type state uint8

const (
	stateFree state = iota
	stateParked
	stateRing
	stateSlow
	stateReplied // the reply is queued, not yet submitted
	statePaused  // waits for space; see hold.go
	stateDelayed // waits for its limit; it has no place in the order of changes yet
)

const none = int32(-1)

// Tags of ring operations: a kind in the upper half, an index in the lower.
const (
	tagFuse    = uint64(iota) << 32 // a read of /dev/fuse into big buffer i
	tagPayload                      // a read or write of the image for request i
	tagReply                        // a reply that failed
	tagWake
	tagCancel
	tagKind = uint64(1<<32-1) << 32
)

// What the ring knows: /dev/fuse, and of the image's files the one with an even
// number and the one with an odd.
const (
	fuseSlot    = 0
	payloadSlot = 1
)

var fuseFD = uring.Fixed(fuseSlot)

// engine serves a session from one locked thread. Only that thread touches
// it, but for slow, waker and stop.
type engine struct {
	s     *session
	ring  *uring.Ring // nil: io_uring is not allowed; see poll.go
	poll  [2]unix.PollFd
	waker *uring.Waker
	slow  *slowPool
	stop  atomic.Bool // read no more requests, finish those there are

	file uint32 // number of the image's file that was pinned last, and is in its slot

	mem  memory
	reqs []request
	// Stacks of free indexes, never longer than made.
	freeReqs []int32
	freeBigs []int32
	replied  []int32 // to be freed once submitted
	parked   []int32 // in order of arrival
	armed    int     // reads of /dev/fuse under way
	seq      uint64
	narrow   int    // requests, running or parked, with narrow set
	taken    uint64 // requests accepted
	carried  uint64 // requests carried out
	pulse    pulse
	hold     held

	heard     bool // a request came in this round
	wakeArmed bool
	cancelled bool
	end       error // why no more requests come; nil: they may
}

// newEngine makes everything an engine needs. It must be called, like run and
// close, on the goroutine that is locked to the thread which will serve.
// uring.ErrUnavailable: only without a ring.
func newEngine(s *session, noRing bool) (_ *engine, err error) {
	e := &engine{s: s}
	defer func() {
		if err != nil {
			e.close()
		}
	}()
	if err := unix.SetNonblock(s.fd, true); err != nil {
		return nil, fmt.Errorf("make /dev/fuse non-blocking: %w", err)
	}
	if e.mem, err = newMemory(s.depth, s.maxIO); err != nil {
		return nil, err
	}
	if !noRing {
		if err := e.newRing(); err != nil {
			return nil, err
		}
	}
	if e.waker, err = uring.NewWaker(e.mem.wake); err != nil {
		return nil, err
	}
	e.makeRequests()
	e.hold.make(s.depth)
	e.pulse.tid = unix.Gettid()
	e.slow = newSlowPool(s, e.reqs, e.waker, noRing)
	return e, nil
}

func (e *engine) newRing() (err error) {
	if e.ring, err = uring.New(256); err != nil {
		return err
	}
	if err := e.ring.RegisterBuffer(e.mem.all); err != nil {
		return fmt.Errorf("give the buffers to the ring: %w", err)
	}
	if err := e.ring.RegisterFiles(int32(e.s.fd), int32(e.s.imageFD), -1); err != nil {
		return fmt.Errorf("give the descriptors to the ring: %w", err)
	}
	return nil
}

func (e *engine) makeRequests() {
	depth := e.s.depth
	e.reqs = make([]request, depth)
	e.freeReqs = make([]int32, 0, depth)
	e.replied = make([]int32, 0, depth)
	e.parked = make([]int32, 0, depth)
	for i := range e.reqs {
		e.freeReqs = append(e.freeReqs, int32(i))
	}
	e.freeBigs = make([]int32, 0, len(e.mem.big))
	for i := range e.mem.big {
		e.freeBigs = append(e.freeBigs, int32(i))
	}
}

// close gives everything back. Nothing may be under way.
func (e *engine) close() {
	if e.slow != nil {
		e.slow.close()
	}
	if e.ring != nil {
		_ = e.ring.Close()
	}
	if e.waker != nil {
		_ = e.waker.Close()
	}
	e.mem.close()
}

// quit makes run end without waiting for the connection to. From any goroutine.
func (e *engine) quit() {
	e.stop.Store(true)
	e.waker.Wake()
}

// restEvery is how often the engine lets the scheduler see it. A goroutine
// that it has not seen for 10 ms loses its processor in every system call,
// however short, to a monitor that from then on looks every 20 µs: a sixth of
// the processor time of a request.
const restEvery = 5 * time.Millisecond

// run serves until the connection ends or quit, and returns when no request
// and no operation is under way. nil: the connection ended as it should.
func (e *engine) run() error {
	rested := time.Now()
	for {
		if now := time.Now(); now.Sub(rested) > restEvery {
			runtime.Gosched()
			rested = now
		}
		e.takeSlow()
		if e.stop.Load() && e.end == nil {
			e.end = errStopped
		}
		if e.end == nil {
			if e.hold.any() {
				e.tend()
			}
			e.arm()
		} else if e.idle() {
			return e.end
		}
		e.waker.Sleep()
		patience := e.patience()
		e.beat(true)
		err := e.wait(patience)
		e.beat(false)
		e.waker.Awake()
		if err != nil {
			return e.abandon(err)
		}
		e.release()
		e.collect()
		if e.heard {
			e.drain()
		}
	}
}

// wait submits what is queued and waits for that many completions, or until
// something held is due.
func (e *engine) wait(n uint32) error {
	var most time.Duration
	if e.end == nil {
		most = e.hold.patience()
	}
	if e.ring == nil {
		return e.waitPoll(n, most)
	}
	return e.ring.EnterFor(n, most)
}

// collect takes what has completed.
func (e *engine) collect() {
	if e.ring == nil {
		e.collectPoll()
		return
	}
	e.heard = false
	var c uring.Completion
	for e.ring.Next(&c) {
		e.complete(c.Tag, c.Res)
	}
}

// patience says how many completions to wait for: none if there is something
// to do first. It is asked after waker.Sleep.
func (e *engine) patience() uint32 {
	if e.slow.ready() || e.stop.Load() && e.end == nil {
		return 0
	}
	// Submitting replies completes nothing, but makes room for more requests,
	// or shows that all are done.
	if len(e.replied) > 0 && (e.armed == 0 || e.end != nil) {
		return 0
	}
	return 1
}

// idle reports, once no more requests are wanted, whether everything has come
// home, and sees to it that it does.
func (e *engine) idle() bool {
	e.leave()
	if len(e.freeReqs) < len(e.reqs) {
		e.armWake() // a slow goroutine may have one
		return false
	}
	if e.ring == nil {
		return true
	}
	if (e.armed > 0 || e.wakeArmed) && !e.cancelled {
		e.cancelled = true
		e.ring.CancelAll(tagCancel)
	}
	return e.armed == 0 && !e.wakeArmed && e.ring.Queued() == 0
}

// abandon is for a ring that does not work any more, which no kernel does to
// a correct program. Operations under way own their memory: it is not reused.
func (e *engine) abandon(err error) error {
	e.mem.leak = true
	return fmt.Errorf("serve: %w", err)
}

// canRead reports whether there is room for one more request than those that
// reads under way may bring.
func (e *engine) canRead() bool { return len(e.freeReqs) > e.armed && len(e.freeBigs) > 0 }

// arm keeps reads of /dev/fuse, and the one of the waker, under way.
func (e *engine) arm() {
	if e.ring == nil {
		return
	}
	e.armWake()
	for e.armed < readers && e.canRead() {
		i := e.popBig()
		e.armed++
		// Not ReadFixed: /dev/fuse refuses memory that is not the user's.
		e.ring.Read(fuseFD, e.mem.big[i][messageAt:], uring.NoOffset, tagFuse|uint64(uint32(i)))
	}
}

func (e *engine) armWake() {
	if e.ring != nil && !e.wakeArmed {
		e.wakeArmed = true
		e.waker.Arm(e.ring, tagWake)
	}
}

// readers is how many reads of /dev/fuse wait in the ring. One: all of them
// would wake for each request; what else there is drain fetches.
const readers = 1

// drain fetches the requests that came beside the one that woke us.
func (e *engine) drain() {
	for e.end == nil && e.canRead() {
		i := e.popBig()
		msg := e.mem.big[i][messageAt:]
		n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(e.s.fd), uintptr(unsafe.Pointer(unsafe.SliceData(msg))), uintptr(len(msg)))
		if errno != 0 {
			e.freeBigs = append(e.freeBigs, i)
			if e.readFailed(errno) {
				return
			}
			continue
		}
		e.accept(i, int(n))
	}
}

// readFailed takes note of a failed read; true: do not read again now.
func (e *engine) readFailed(errno syscall.Errno) bool {
	switch errno {
	case unix.EINTR, unix.ENOENT: // ENOENT: the request was given up before it was read
		return false
	case unix.EAGAIN, unix.ECANCELED:
	case unix.ENODEV, unix.ECONNABORTED: // the latter: while a request was being read
		e.ended(errUnmounted)
	default:
		e.ended(fmt.Errorf("read /dev/fuse: %w", errno))
	}
	return true
}

func (e *engine) ended(err error) {
	if e.end == nil {
		e.end = err
	}
}

func (e *engine) popBig() int32 {
	i := e.freeBigs[len(e.freeBigs)-1]
	e.freeBigs = e.freeBigs[:len(e.freeBigs)-1]
	return i
}

// complete takes one completion of the ring.
func (e *engine) complete(tag uint64, res int32) {
	i := int32(uint32(tag))
	switch tag & tagKind {
	case tagFuse:
		e.armed--
		if res < 0 {
			e.freeBigs = append(e.freeBigs, i)
			e.readFailed(syscall.Errno(-res))
			return
		}
		e.heard = true
		e.accept(i, int(res))
	case tagPayload:
		e.payloadDone(i, res)
	case tagReply:
		// ENOENT: the kernel has given the request up. After the end of the
		// connection every reply fails.
		if errno := syscall.Errno(-res); errno != unix.ENOENT && e.end == nil {
			e.ended(fmt.Errorf("write reply to /dev/fuse: %w", errno))
		}
	case tagWake:
		e.wakeArmed = false
		e.waker.Seen()
	case tagCancel:
		e.cancelled = false
	}
}
