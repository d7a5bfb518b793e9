package supervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// envName tells a worker which descriptors it has inherited: the page, and the
// listener if there is one.
const envName = "VHDX_SUPERVISED"

// MaxStrikes is how many failures put an id into quarantine.
const MaxStrikes = 3

var (
	// ErrNotSupervised: no supervisor has started this process.
	ErrNotSupervised = errors.New("no supervisor has started this process")
	// ErrNoListener: the supervisor holds none.
	ErrNoListener = errors.New("supervisor passes no listener")
)

// Link is a worker's half. A nil Link, that of a process without supervisor,
// does nothing and suspects nobody.
type Link struct {
	page     page
	past     History
	listener *os.File // nil: there is none

	mu       sync.Mutex // guards all below, and the slots of page
	blamed   int        // slots in use by Blame
	alone    bool       // a suspect is at work
	released chan struct{}
}

// Worker connects this process to the supervisor that has started it. Call it
// once, early: from then on the process must beat.
func Worker() (*Link, error) {
	value, ok := os.LookupEnv(envName)
	if !ok {
		return nil, ErrNotSupervised
	}
	// Children of the worker are no workers.
	if err := os.Unsetenv(envName); err != nil {
		return nil, err
	}
	var files []*os.File
	for name := range strings.SplitSeq(value, ",") {
		fd, err := strconv.Atoi(name)
		if err != nil {
			return nil, fmt.Errorf("%s=%s: %w", envName, value, err)
		}
		unix.CloseOnExec(fd)
		files = append(files, os.NewFile(uintptr(fd), "inherited "+name))
	}
	p, err := openPage(files[0])
	if err = errors.Join(err, files[0].Close()); err != nil {
		return nil, fmt.Errorf("connect to the supervisor: %w", err)
	}
	l := &Link{page: p, past: p.history(), released: make(chan struct{})}
	if len(files) > 1 {
		l.listener = files[1]
	}
	l.Beat()
	return l, nil
}

// Listener returns the supervisor's listener. Closing it closes this process's
// share of it alone.
func (l *Link) Listener() (net.Listener, error) {
	if l == nil || l.listener == nil {
		return nil, ErrNoListener
	}
	n, err := net.FileListener(l.listener)
	if err != nil {
		return nil, fmt.Errorf("take over the supervisor's listener: %w", err)
	}
	return n, nil
}

// Beat says that the worker is alive.
func (l *Link) Beat() {
	if l != nil {
		l.page.beats().Add(1)
	}
}

// BeatWhile beats as often as it takes, until ctx ends, as long as alive says
// true. When alive says false or does not return, the supervisor kills the
// process after Options.Heartbeat.
func (l *Link) BeatWhile(ctx context.Context, alive func() bool) {
	if l == nil {
		<-ctx.Done()
		return
	}
	tick := time.NewTicker(max(l.page.interval(), time.Millisecond))
	defer tick.Stop()
	for {
		if alive() {
			l.Beat()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Ready says that the worker has come up: should it end by itself from now on,
// it is replaced, and not what it was started with to blame.
func (l *Link) Ready() {
	if l != nil {
		l.page.word(offReady).Store(1)
	}
}

// Blame says that the worker does something for id that could kill it, until
// release is called. A suspect waits until it is alone, and all others until it
// is done. Do not nest calls.
func (l *Link) Blame(ctx context.Context, id string) (release func(), err error) {
	if l == nil {
		return func() {}, nil
	}
	if id == "" || len(id) > maxID {
		return nil, fmt.Errorf("blame an id of %d bytes: 1 to %d are possible", len(id), maxID)
	}
	for {
		off, wait := l.enter(id)
		if wait == nil {
			return sync.OnceFunc(func() { l.leave(off) }), nil
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for work on other volumes to end: %w", ctx.Err())
		}
	}
}

// enter takes a slot, or returns what to wait for.
func (l *Link) enter(id string) (off int, wait <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	suspect := l.page.strikes(id) > 0
	if l.alone || suspect && l.blamed > 0 {
		return 0, l.released
	}
	off, ok := l.free()
	if !ok {
		return 0, l.released
	}
	l.alone = suspect
	l.blamed++
	l.page.fill(off, id, slotBlamed)
	return off, nil
}

func (l *Link) leave(off int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.page.word(off).Store(slotFree)
	l.blamed--
	l.alone = false
	close(l.released)
	l.released = make(chan struct{})
}

func (l *Link) free() (int, bool) {
	for i := range slots {
		off := l.page.cell(offSlots, i)
		if l.page.word(off).CompareAndSwap(slotFree, slotFilling) {
			return off, true
		}
	}
	return 0, false
}

// Accuse says that the death about to come, of a panic or a hang, is id's
// doing and nobody else's.
func (l *Link) Accuse(id string) {
	if l == nil || id == "" || len(id) > maxID {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if off, ok := l.free(); ok {
		l.page.fill(off, id, slotAccused)
	}
}

// Quarantined lists what must not be worked on: it has killed its worker
// [MaxStrikes] times.
func (l *Link) Quarantined() []string {
	if l == nil {
		return nil
	}
	var ids []string
	l.page.marked(func(_ int, id string, strikes uint32) {
		if strikes >= MaxStrikes {
			ids = append(ids, id)
		}
	})
	return ids
}
