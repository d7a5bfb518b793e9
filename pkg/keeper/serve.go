package keeper

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"time"
)

// Options of a keeper.
type Options struct {
	// Socket is where it listens. Its directory must exist.
	Socket string
	// Build names this build to clients.
	Build string
	// Stop asks the keeper to end, as SIGTERM does: it does if it holds
	// nothing, else it says through Note what would be lost and goes on.
	Stop <-chan struct{}
	// Bounds; 0: 1,024 items, 4 files for each, 1 GiB of memfds.
	MaxItems, MaxFiles int
	MaxBytes           int64
	// Idle, if set, is how long a keeper lives that has no client and holds
	// nothing, or whose socket is gone from its directory, so that nobody can
	// ever reach it.
	Idle time.Duration
	// Note, if set, is told what an operator should know, one call at a time.
	// The keeper does not wait for it.
	Note func(text string)
}

const (
	defaultItems = 1024
	maxUntold    = 256 // notes
	idleEvery    = time.Second / 4
	defaultBytes = 1 << 30
	maxClients   = 32
	// helloPatience is how long a client may take to greet, and sendPatience
	// how long to make room for an answer.
	helloPatience = 2 * time.Second
	sendPatience  = time.Second
)

func (o Options) filled() Options {
	o.MaxItems = cmp.Or(o.MaxItems, defaultItems)
	o.MaxFiles = cmp.Or(o.MaxFiles, o.MaxItems*MaxFiles)
	o.MaxBytes = cmp.Or(o.MaxBytes, defaultBytes)
	if o.Note == nil {
		o.Note = func(string) {}
	}
	return o
}

// detach has Note called by a goroutine of its own, until end: it may write to a
// log that nobody reads any more.
func (o *Options) detach() (end func()) {
	notes, quit, done := make(chan string, maxUntold), make(chan struct{}), make(chan struct{})
	note := o.Note
	go func() {
		defer close(done)
		for {
			select {
			case text := <-notes:
				note(text)
				continue
			default:
			}
			select {
			case text := <-notes:
				note(text)
			case <-quit:
				return
			}
		}
	}()
	o.Note = func(text string) {
		select {
		case notes <- text:
		default:
		}
	}
	return func() {
		close(quit)
		select {
		case <-done:
		case <-time.After(sendPatience):
		}
	}
}

// server is a keeper at work.
type server struct {
	o       Options
	store   *store
	shelf   *shelf // systemd's descriptor store, or nil
	started time.Time
	exposed []string
	stopped chan struct{} // closed when a client's stop was granted
	once    sync.Once

	mu       sync.Mutex // guards sessions and owners
	sessions map[*session]bool
	owners   map[string]*session
	wg       sync.WaitGroup // one for each of sessions
}

// Serve is the keeper's whole life. It returns when the context ends, whatever
// is held then, or when it was asked to stop and did.
func Serve(ctx context.Context, o Options) error {
	return serve(ctx, o, protect())
}

// serve does without what protects a process as a whole; exposed says so.
func serve(ctx context.Context, o Options, exposed []string) error {
	o = o.filled()
	defer o.detach()()
	l, unlock, err := listen(o.Socket)
	if err != nil {
		return err
	}
	defer unlock()
	s := &server{
		o: o, store: newStore(o), started: time.Now(), exposed: exposed,
		stopped: make(chan struct{}), sessions: map[*session]bool{}, owners: map[string]*session{},
	}
	defer s.store.closeAll()
	if s.shelf, err = openShelf(ctx, s.store, o.Note); err != nil {
		return errors.Join(err, l.Close())
	}
	defer s.shelf.close()
	accepting := make(chan error, 1)
	go func() { accepting <- s.accept(l) }()
	err = s.wait(ctx, accepting)
	err = errors.Join(err, l.Close())
	s.hangUp()
	return err
}

// wait returns when the keeper is to end.
func (s *server) wait(ctx context.Context, accepting <-chan error) error {
	tick := time.NewTicker(idleEvery)
	defer tick.Stop()
	for used := time.Now(); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-s.stopped:
			return nil
		case err := <-accepting:
			return err
		case <-tick.C:
			if s.busy() {
				used = time.Now()
			}
			if s.o.Idle > 0 && time.Since(used) > s.o.Idle && s.useless() {
				return nil
			}
			continue
		case <-s.o.Stop:
		}
		// What systemd has too comes back when it starts the next keeper.
		r := s.store.end(s.shelf.complete())
		if r == nil {
			return nil
		}
		s.o.Note("asked to stop, goes on: " + r.text)
	}
}

// busy reports whether there is a client.
func (s *server) busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions) > 0
}

// useless reports whether a keeper without clients may as well end.
func (s *server) useless() bool {
	if s.store.end(false) == nil {
		return true
	}
	if _, err := os.Lstat(s.o.Socket); !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	s.o.Note("its socket is gone and nobody can reach it: ends, and with it what it held")
	return s.store.end(true) == nil
}

// accept serves clients until the listener is closed.
func (s *server) accept(l *net.UnixListener) error {
	for {
		c, err := l.AcceptUnix()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			// No descriptor is free, or the like: it may pass, and ending
			// would cost every device.
			s.o.Note(fmt.Sprintf("cannot accept a client: %v", err))
			time.Sleep(100 * time.Millisecond)
			continue
		}
		s.mu.Lock()
		n := &session{server: s, conn: c}
		full := len(s.sessions) >= maxClients
		if !full {
			s.sessions[n] = true
			s.wg.Go(n.serve)
		}
		s.mu.Unlock()
		if full {
			s.turnAway(c)
		}
	}
}

// turnAway says why; it never waits for that to be read.
func (s *server) turnAway(c *net.UnixConn) {
	_ = c.SetWriteDeadline(time.Now().Add(sendPatience / 100))
	_ = send(c, s.hello(verdictFull).encode(), nil)
	_ = c.Close()
}

// hangUp ends all clients and waits for their goroutines.
func (s *server) hangUp() {
	s.mu.Lock()
	for n := range s.sessions {
		_ = n.conn.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

func (s *server) hello(v verdict) hello {
	return hello{low: protocolLow, high: protocolHigh, verdict: v, build: s.o.Build}
}
