package pool

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/fsx"
)

// One empty file holds all locks of a pool: each is an OFD lock on one byte of
// it, far beyond its end. No lock file is ever made or removed, so none can be
// removed under a waiter.
//
// Order: volume -> pool -> account. A volume's lock is held for as long as its
// creation, growth or deletion takes, so that whoever gets it knows that an
// unfinished operation on the volume is a dead one.
const (
	lockPool    = 0 // shared: an accounted operation is under way. Exclusive: recount
	lockAccount = 1 // the account is being read and replaced
)

// Waiting for a lock: polls, because a blocking lock cannot be given up.
const (
	pollMin = 200 * time.Microsecond
	pollMax = 20 * time.Millisecond
	maxWait = 2 * time.Minute // where the context has no deadline
)

// maxHold is for how long a lock vouches for a file replaced under it. A
// machine that was cut off or asleep for longer may have lost the lock without
// having been told (I-POOL-9): NFS leases last 90 s.
const maxHold = 20 * time.Second

// session is one operation's locks: one description of the lock file.
type session struct {
	p    *Pool
	hash hash
	f    *os.File
	keys []int64 // in this process
	// at is when the lock was taken that vouches for what is written now.
	at      time.Duration
	entered bool // has lockPool, shared
}

// lockVolume begins an operation on the volume of a name.
func (p *Pool) lockVolume(ctx context.Context, h hash) (*session, error) {
	return p.newSession(h, func(s *session) error { return s.take(ctx, h.lock()) })
}

// tryVolume is lockVolume that does not wait: fsx.ErrLocked.
func (p *Pool) tryVolume(h hash) (*session, error) {
	return p.newSession(h, func(s *session) error {
		if !p.keys.try(h.lock()) {
			return fsx.ErrLocked
		}
		s.keys = append(s.keys, h.lock())
		s.at = bootTime()
		return fsx.TryLock(s.f, byteAt(h.lock()), true)
	})
}

func (p *Pool) newSession(h hash, lock func(*session) error) (*session, error) {
	f, err := p.tree.Open(fileLocks, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w", p.name, err)
	}
	s := &session{p: p, hash: h, f: f}
	if err := lock(s); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// close ends all locks of the operation.
func (s *session) close() {
	unlockAndClose(s.f)
	for _, k := range s.keys {
		s.p.keys.leave(k)
	}
}

// take takes an exclusive lock: first among this process, then among all.
func (s *session) take(ctx context.Context, key int64) error {
	ctx, cancel := withDefaultDeadline(ctx)
	defer cancel()
	if err := s.p.keys.enter(ctx, key); err != nil {
		return s.busy(err)
	}
	if err := s.poll(ctx, key, true); err != nil {
		s.p.keys.leave(key)
		return err
	}
	s.keys = append(s.keys, key)
	s.at = bootTime()
	return nil
}

func (s *session) give(key int64) error {
	err := fsx.Unlock(s.f, byteAt(key))
	if i := slices.Index(s.keys, key); i >= 0 {
		s.keys = slices.Delete(s.keys, i, i+1)
		s.p.keys.leave(key)
	}
	return err
}

// poll takes a lock on the lock file alone.
func (s *session) poll(ctx context.Context, key int64, exclusive bool) error {
	ctx, cancel := withDefaultDeadline(ctx)
	defer cancel()
	for wait := pollMin; ; wait = min(2*wait, pollMax) {
		err := fsx.TryLock(s.f, byteAt(key), exclusive)
		if !errors.Is(err, fsx.ErrLocked) {
			return err
		}
		select {
		case <-ctx.Done():
			return s.busy(ctx.Err())
		case <-time.After(wait/2 + rand.N(wait)): //nolint:gosec // only spreads the waiters
		}
	}
}

func (s *session) busy(err error) error {
	return fmt.Errorf("pool %s: name %s: %w: %w", s.p.name, s.hash, ErrBusy, err)
}

// fresh refuses to go on under a lock that may have been lost.
func (s *session) fresh() error {
	if held := bootTime() - s.at; held > s.p.maxHold {
		return fmt.Errorf("pool %s: %w: the lock was held for %v, longer than it is trusted", s.p.name, ErrBusy, held)
	}
	return nil
}

func byteAt(key int64) fsx.Range { return fsx.Range{Start: key, Length: 1} }

func withDefaultDeadline(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, maxWait)
}

// bootTime goes on while the machine sleeps.
func bootTime() time.Duration {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) //nolint:errcheck // cannot fail with a valid clock
	return time.Duration(ts.Nano())
}

// keyed is a mutex for each key, of this process only. It keeps goroutines
// from polling for what another one of them has.
type keyed struct {
	mu   sync.Mutex
	held map[int64]*key
}

type key struct {
	turn  chan struct{} // holds a token while the key is free
	users int           // holder and waiters; guarded by keyed.mu
}

func (k *keyed) ref(id int64) *key {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.held == nil {
		k.held = map[int64]*key{}
	}
	e := k.held[id]
	if e == nil {
		e = &key{turn: make(chan struct{}, 1)}
		e.turn <- struct{}{}
		k.held[id] = e
	}
	e.users++
	return e
}

func (k *keyed) unref(id int64, put bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	e := k.held[id]
	if put {
		e.turn <- struct{}{}
	}
	if e.users--; e.users == 0 {
		delete(k.held, id)
	}
}

func (k *keyed) enter(ctx context.Context, id int64) error {
	e := k.ref(id)
	select {
	case <-e.turn:
		return nil
	default:
	}
	select {
	case <-e.turn:
		return nil
	case <-ctx.Done():
		k.unref(id, false)
		return ctx.Err()
	}
}

func (k *keyed) try(id int64) bool {
	e := k.ref(id)
	select {
	case <-e.turn:
		return true
	default:
		k.unref(id, false)
		return false
	}
}

func (k *keyed) leave(id int64) { k.unref(id, true) }
