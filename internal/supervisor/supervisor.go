package supervisor

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options of a supervisor.
type Options struct {
	// Command of the worker: program and arguments. nil: this program, which
	// is /proc/self/exe, with these arguments; it finds out by [Worker].
	Command []string
	// Env of the worker; nil: this process's.
	Env []string
	// Listener, if set, is passed to every worker. It stays the caller's.
	Listener net.Listener
	// Heartbeat: a worker silent for so long is killed. Default 10 s. Until
	// its first beat it has three times as long.
	Heartbeat time.Duration
	// Grace is how long a worker may take to end after SIGTERM. Default 30 s.
	Grace time.Duration
	// Settle is the life after which a worker's end is no sign of trouble.
	// Default 10 s.
	Settle time.Duration
	// OnRestart, if set, is told of each worker that ended and is replaced,
	// and Note what an operator should know. Calls come one at a time, later:
	// the supervisor does not wait for them.
	OnRestart func(Restart)
	Note      func(text string)
}

// Restart is the end of a worker that is replaced.
type Restart struct {
	Worker int    // which, from 1
	PID    int    // of the one that ended
	Cause  string // "signal: killed", "exit status 2", "no heartbeat for 10s", ...
	// Failed: it ended by its own doing.
	Failed bool
	Life   time.Duration
	// Wait is how long its successor is held back.
	Wait time.Duration
	// Culprits got a strike for it, Quarantined are all that have three.
	Culprits, Quarantined []string
}

// ExitError: the worker has ended, and so does the supervisor.
type ExitError struct {
	// Code for os.Exit: the worker's own, or 128 and the signal.
	Code  int
	Cause string
}

func (e *ExitError) Error() string { return "worker ended: " + e.Cause }

// tickEvery is how often the worker is looked at.
const tickEvery = 50 * time.Millisecond

// culpritWait bounds the backoff after failures that had a culprit: the other
// volumes wait, too.
const culpritWait = 100 * time.Millisecond

// unreadyWait follows a worker that was killed from outside before it was ready:
// not its doing, so its volumes do not wait long, but no busy loop either.
const unreadyWait = 10 * time.Millisecond

func (o Options) filled() Options {
	if len(o.Command) == 0 {
		o.Command = append([]string{selfExe}, os.Args[1:]...)
	}
	o.Heartbeat = cmp.Or(o.Heartbeat, 10*time.Second)
	o.Grace = cmp.Or(o.Grace, 30*time.Second)
	o.Settle = cmp.Or(o.Settle, 10*time.Second)
	if o.OnRestart == nil {
		o.OnRestart = func(Restart) {}
	}
	if o.Note == nil {
		o.Note = func(string) {}
	}
	return o
}

// The callbacks may write to a log that nobody reads any more: what they are
// told waits, up to a bound, and so does the end of Run for a moment.
const (
	maxUntold = 256
	lastWords = time.Second
)

// detach has the callbacks called by a goroutine of their own, until end.
func (o *Options) detach() (end func()) {
	calls, done := make(chan func(), maxUntold), make(chan struct{})
	go func() {
		defer close(done)
		for call := range calls {
			call()
		}
	}()
	later := func(call func()) {
		select {
		case calls <- call:
		default: // nobody listens
		}
	}
	restart, note := o.OnRestart, o.Note
	o.OnRestart = func(r Restart) { later(func() { restart(r) }) }
	o.Note = func(text string) { later(func() { note(text) }) }
	return func() {
		close(calls)
		select {
		case <-done:
		case <-time.After(lastWords):
		}
	}
}

// supervisor is used by one goroutine, on one thread.
type supervisor struct {
	o        Options
	listener *os.File
	worker   *worker // nil: there is none now
	leaving  []*worker
	strikes  map[string]uint32
	failures int       // in a row
	failed   time.Time // the last of them
	started  int       // workers so far
	past     History   // of those that have been replaced
	tallies  [Tallies]uint64

	signals  chan os.Signal
	children chan os.Signal   // SIGCHLD
	asked    int              // signals that asked for an end
	stopping bool             // an end has been asked for
	deadline <-chan time.Time // of the grace
	next     <-chan time.Time // when to start the successor
}

// Run starts a worker and replaces it until the context ends or SIGTERM or
// SIGINT comes: then the worker gets SIGTERM (for a signal after the first, that
// one), and Run returns when it has ended: nil if its exit code was 0.
//
// A first worker that exits before it is ready is not replaced, unless it
// blames something: it has been started wrongly.
func Run(ctx context.Context, o Options) error {
	// The worker's death signal and its mark as a server of block I/O are
	// those of the thread that starts it, which therefore must last.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	o = o.filled()
	end := o.detach()
	defer end()
	s := &supervisor{
		o: o, strikes: map[string]uint32{},
		signals: make(chan os.Signal, 16), children: make(chan os.Signal, 1),
	}
	if err := unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0); err != nil {
		s.o.Note(fmt.Sprintf("memory reclaim may wait for a volume of the worker (PR_SET_IO_FLUSHER needs CAP_SYS_RESOURCE): %v", err))
	}
	if o.Listener != nil {
		l, ok := o.Listener.(interface{ File() (*os.File, error) })
		if !ok {
			return fmt.Errorf("listener %T has no descriptor to pass on", o.Listener)
		}
		var err error
		if s.listener, err = l.File(); err != nil {
			return fmt.Errorf("pass the listener on: %w", err)
		}
		defer s.listener.Close()
	}
	signal.Notify(s.signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(s.signals)
	signal.Notify(s.children, syscall.SIGCHLD)
	defer signal.Stop(s.children)
	return s.run(ctx)
}

func (s *supervisor) run(ctx context.Context) error {
	if err := s.start(); err != nil {
		return err
	}
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	cancelled := ctx.Done()
	for {
		var exited <-chan error
		if s.worker != nil {
			exited = s.worker.exited
		}
		var ended *end
		select {
		case err := <-exited:
			ended = s.worker.exit(err)
		case <-tick.C:
			ended = s.look()
		case <-s.children:
			s.reap()
		case sig := <-s.signals:
			s.signal(sig)
		case <-cancelled:
			cancelled = nil
			s.stop(syscall.SIGTERM)
		case <-s.deadline:
			s.o.Note(fmt.Sprintf("worker %d does not end within %v: killed", s.worker.pid(), s.o.Grace))
			s.worker.kill()
			ended = killed(fmt.Sprintf("killed after a grace of %v", s.o.Grace))
		case <-s.next:
			s.next = nil
			if err := s.start(); err != nil {
				s.o.Note(err.Error())
				s.failures++
				s.next = time.After(max(backoff(s.failures), tickEvery))
			}
		}
		if ended != nil {
			if done, err := s.replace(ended); done {
				return err
			}
		}
		if s.stopping && s.worker == nil {
			return nil // asked to end while there was none
		}
	}
}

// signal handles one that the supervisor has got.
func (s *supervisor) signal(sig os.Signal) {
	switch sig {
	case syscall.SIGTERM, syscall.SIGINT:
		if s.asked++; s.asked == 1 || s.worker == nil {
			s.stop(syscall.SIGTERM)
			return
		}
		s.worker.signal(sig)
	case syscall.SIGQUIT:
		if s.worker != nil {
			s.worker.signal(sig) // its stacks are of interest, not ours
		}
	case syscall.SIGHUP:
		s.forgive(true)
	}
}

// stop asks the worker to end, once.
func (s *supervisor) stop(sig os.Signal) {
	if s.stopping {
		return
	}
	s.stopping = true
	if s.worker != nil {
		s.worker.signal(sig)
		s.deadline = time.After(s.o.Grace)
	}
}

// start starts a worker.
func (s *supervisor) start() error {
	w, err := s.spawn()
	if err != nil {
		return fmt.Errorf("start a worker: %w", err)
	}
	s.started++
	s.worker = w
	return nil
}

// look sees whether the worker dies or hangs, and tidies up.
func (s *supervisor) look() *end {
	s.reap()
	w := s.worker
	if w == nil {
		return nil
	}
	if !w.settled && time.Since(w.started) >= s.o.Settle {
		w.settled = true
		s.failures = 0
		s.forgive(false)
	}
	if w.dying() {
		return killed("dying: its main thread has ended, another one waits in the kernel")
	}
	if silent := w.silence(); silent >= w.patience(s.o.Heartbeat) && !s.stopping {
		w.kill()
		e := killed(fmt.Sprintf("no heartbeat for %v", silent))
		e.failed, e.silent = true, silent
		return e
	}
	return nil
}

// replace ends a worker's turn and decides what comes now.
func (s *supervisor) replace(e *end) (done bool, err error) {
	w := s.worker
	s.worker = nil
	culprits := w.page.culprits()
	ready := w.page.ready()
	for i := range s.tallies {
		s.tallies[i] = w.page.tally(i).Load()
	}
	w.page.close()
	if !w.gone {
		w.left = time.Now()
		if !e.failed {
			w.suspects = culprits
		}
		s.leaving = append(s.leaving, w)
	}
	if s.stopping {
		return true, e.asError()
	}
	if s.started == 1 && !ready && e.exited && len(culprits) == 0 {
		return true, e.asError()
	}
	r := Restart{Worker: s.started, PID: w.pid(), Cause: e.cause, Life: time.Since(w.started), Failed: e.failed}
	if !e.failed && !ready {
		r.Wait = unreadyWait
	}
	if r.Life >= s.o.Settle || time.Since(s.failed) >= s.o.Settle {
		s.failures = 0
	}
	if r.Failed {
		s.failures++
		s.failed = time.Now()
		r.Wait = backoff(s.failures)
	}
	if e.failed {
		s.strike(culprits)
		r.Culprits = culprits
		if len(culprits) > 0 {
			r.Wait = min(r.Wait, culpritWait) // the strikes will end the row
		}
	}
	r.Quarantined = s.quarantined()
	s.remember(e)
	s.o.OnRestart(r)
	if r.Wait == 0 {
		if err = s.start(); err == nil {
			return false, nil
		}
		s.o.Note(err.Error())
	}
	s.next = time.After(max(r.Wait, time.Millisecond))
	return false, nil
}

// remember notes for the successors how a worker's turn ended.
func (s *supervisor) remember(e *end) {
	kind := Killed
	switch {
	case e.silent > 0:
		kind = Hung
	case e.failed:
		kind = Failed
	}
	s.past.Ends[kind]++
	s.past.Last, s.past.Cause, s.past.At = kind, e.cause, SinceBoot()-e.silent
}

// SinceBoot is the time that both sides of a page know.
func SinceBoot() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// asError is what Run returns when e ends it.
func (e *end) asError() error {
	if e.exited && e.code == 0 {
		return nil
	}
	return &ExitError{Code: e.code, Cause: e.cause}
}
