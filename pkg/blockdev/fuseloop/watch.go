package fuseloop

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
)

// Whether an engine hangs by its own fault. A verdict costs every volume of
// the process a restart, so it must be proven; storage that is slow, or gone,
// must never be taken for it. What is a proof:
//
//   - The engine's thread does not come round although it has been woken, and
//     sleeps interruptibly or spins: it waits for a lock, or for a ring that
//     does not wake it. Storage makes a thread wait uninterruptibly (state D), and
//     the thread does no I/O that waits: payload goes through the ring, and the
//     rest to the slow goroutines.
//   - It comes round, but requests are parked behind nothing, or wait in
//     /dev/fuse while it has room and takes none.
//
// What is none: a request that is held (hold.go); a payload operation of the ring under way, and a request in the
// hands of a slow goroutine, however long. Both may wait for the storage, or for
// space on it.
//
// Time alone proves nothing either: the process may have been stopped. So it
// takes so many looks, each of which finds the same, over so long a time.
const (
	hangLooks = 5
	hangTime  = 10 * time.Second
)

// pulse is what the engine's thread tells of itself.
type pulse struct {
	tid    int
	rounds atomic.Uint64 // twice the rounds made; odd while it waits in the kernel
	taken  atomic.Uint64 // requests accepted
	done   atomic.Uint64 // requests carried out
	queue  atomic.Uint64 // see pack
}

// pack puts together how many requests are parked, how many are under way, and
// whether there is room for more.
func pack(parked, running int, room bool) uint64 {
	q := uint64(parked)<<32 | uint64(running)<<1
	if room {
		q |= 1
	}
	return q
}

// beat is called by the engine's thread before it waits, with true, and after.
func (e *engine) beat(waiting bool) {
	if !waiting {
		e.pulse.rounds.Add(1)
		return
	}
	e.pulse.taken.Store(e.taken)
	e.pulse.done.Store(e.carried)
	held, parked := len(e.hold.paused)+len(e.hold.delayed), len(e.parked)
	running := len(e.reqs) - len(e.freeReqs) - len(e.replied) - parked - held
	if len(e.hold.paused) > 0 {
		parked = 0 // they may wait behind those
	}
	e.pulse.queue.Store(pack(parked, running, e.end == nil && (e.armed > 0 || e.canRead())))
	e.pulse.rounds.Add(1)
}

// sight is what one look at an engine finds.
type sight struct {
	rounds, taken, done, queue uint64
	unread                     bool   // requests wait in /dev/fuse
	state                      byte   // of the thread, as in /proc; 0: not known
	ticks                      uint64 // processor time of the thread
	at                         time.Time
}

func (s sight) waiting() bool { return s.rounds&1 == 1 }
func (s sight) room() bool    { return s.queue&1 == 1 }
func (s sight) parked() bool  { return s.queue>>32 > 0 }
func (s sight) running() int  { return int(s.queue & (1<<32 - 1) >> 1) }

// watch judges an engine by what several looks have in common.
type watch struct {
	thread, parked, unread suspicion

	waits  suspicion // for the storage, which is no fault of the engine
	waited bool      // and has been said
}

// suspicion is something that looks have found again and again since first.
type suspicion struct {
	first sight
	looks int
}

// holds takes one more look into account. True: it has lasted.
func (s *suspicion) holds(found bool, now sight) bool {
	if !found {
		s.looks = 0
		return false
	}
	if s.looks == 0 {
		s.first = now
	}
	s.looks++
	return s.looks >= hangLooks && now.at.Sub(s.first.at) >= hangTime
}

// look judges by one more sight: nil, or what hangs.
func (w *watch) look(now sight) error {
	same := func(s *suspicion) bool { return s.looks == 0 || s.first.rounds == now.rounds }
	still := func(s *suspicion) bool { return s.looks == 0 || s.first.taken == now.taken }
	lasted := func(s *suspicion) string {
		return fmt.Sprintf("for %v (%d looks)", now.at.Sub(s.first.at).Round(time.Second), s.looks)
	}
	stuck := same(&w.thread) && stuckState(now.state)
	if !same(&w.thread) {
		w.thread.looks = 0 // it has come round; what it does now is a new matter
		stuck = stuckState(now.state)
	}
	if w.thread.holds(stuck, now) && proven(w.thread.first, now) {
		return fmt.Errorf("the serving thread %s has not come round %s, in state %c", where(now), lasted(&w.thread), now.state)
	}
	if w.parked.holds(now.parked() && now.running() == 0 && still(&w.parked), now) {
		return fmt.Errorf("requests wait behind nothing %s", lasted(&w.parked))
	}
	if w.unread.holds(now.unread && now.room() && now.waiting() && still(&w.unread), now) {
		return fmt.Errorf("requests of the kernel are not read %s", lasted(&w.unread))
	}
	return nil
}

// stallTime is how long the storage may take before it is worth a word.
const stallTime = time.Minute

// stalls says when no request has been carried out for long, and when it goes
// on; "" else.
func (w *watch) stalls(now sight) string {
	if now.running() > 0 && (w.waits.looks == 0 || w.waits.first.done == now.done) {
		if w.waits.holds(true, now); !w.waited && now.at.Sub(w.waits.first.at) >= stallTime {
			w.waited = true
			return fmt.Sprintf("none of %d requests has been carried out for %v: the storage hangs or is full; they wait", now.running(), stallTime)
		}
		return ""
	}
	w.waits.looks = 0
	if !w.waited {
		return ""
	}
	w.waited = false
	return "requests are carried out again"
}

func where(s sight) string {
	if s.waiting() {
		return "waits in the kernel and"
	}
	return "is in the program and"
}

// stuckState reports whether a thread in this state may hang by its own fault:
// not one that waits for storage (D), is stopped (T, t) or cannot be seen.
func stuckState(state byte) bool { return state == 'S' || state == 'R' }

// proven tells a thread that hangs from one that is not given a processor, or
// is kept by the kernel.
func proven(first, now sight) bool {
	if now.state == 'S' {
		return true
	}
	const ticksPerSecond = 100 // USER_HZ
	spent := time.Duration(now.ticks-first.ticks) * time.Second / ticksPerSecond
	return !now.waiting() && spent >= now.at.Sub(first.at)/2
}

// see looks at an engine that is not closed.
func (e *engine) see(now time.Time) sight {
	e.waker.Wake()
	s := sight{rounds: e.pulse.rounds.Load(), taken: e.pulse.taken.Load(), done: e.pulse.done.Load(), queue: e.pulse.queue.Load(), at: now}
	poll := []unix.PollFd{{Fd: int32(e.s.fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(poll, 0); err == nil && n > 0 {
		s.unread = poll[0].Revents&unix.POLLIN != 0
	}
	s.state, s.ticks = threadState(e.pulse.tid)
	return s
}

// threadState reads what the kernel says of a thread of this process.
func threadState(tid int) (state byte, ticks uint64) {
	b, err := os.ReadFile("/proc/self/task/" + strconv.Itoa(tid) + "/stat")
	if err != nil {
		return 0, 0
	}
	_, rest, _ := bytes.Cut(b[max(0, bytes.LastIndexByte(b, ')')):], []byte(" "))
	f := bytes.Fields(rest)
	if len(f) < 13 || len(f[0]) != 1 {
		return 0, 0
	}
	user, err := strconv.ParseUint(string(f[11]), 10, 64)
	system, err2 := strconv.ParseUint(string(f[12]), 10, 64)
	if errors.Join(err, err2) != nil {
		return 0, 0
	}
	return f[0][0], user + system
}

var _ blockdev.Watched = (*Device)(nil)

// Alive says what hangs, if it is proven to be this program's fault.
func (d *Device) Alive() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.srv == nil {
		return nil // not yet, or no more: Done tells
	}
	now := d.srv.see(time.Now())
	if text := d.watch.stalls(now); text != "" {
		d.note("%s", text)
	}
	if err := d.watch.look(now); err != nil {
		return fmt.Errorf("volume %s on %s hangs: %w", d.id, d.path, err)
	}
	return nil
}
