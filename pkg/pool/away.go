package pool

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"
)

// How often a share that does not answer is tried: at first, and at most.
const (
	awayPause    = time.Second
	awayPauseMax = 30 * time.Second
)

// shareErrors are what the kernel answers for a share that is not there now, or
// not as it should be, which somebody may mend while the other pools are served.
// Everything else is a mistake in what was asked for.
var shareErrors = []error{
	syscall.ENOENT, syscall.EROFS, syscall.EACCES, syscall.EPERM, syscall.ENOSPC, syscall.EDQUOT,
	syscall.EIO, syscall.ESTALE, syscall.ETIMEDOUT, syscall.ENOTCONN, syscall.EHOSTDOWN,
	syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.ECONNREFUSED, syscall.ECONNRESET,
}

// opening is the outcome of one Open.
type opening struct {
	pool *Pool
	err  error
}

// OpenSet opens pools side by side, the default first. A share that fails, cannot
// be written, or has not answered after patience, holds up no other pool: it is
// away, and tried again until [Set.Close]. note is told when a pool goes and comes. Any
// other error is returned, and nothing is left open.
func OpenSet(ctx context.Context, patience time.Duration, note func(pool string, err error), options ...Options) (*Set, error) {
	var names []string
	for _, o := range options {
		names = append(names, o.Name)
	}
	s, err := emptySet(names)
	if err != nil {
		return nil, err
	}
	patient, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := s.openAll(ctx, patient, note, options); err != nil {
		return nil, err
	}
	return s, nil
}

// openAll waits for pools until patient ends.
func (s *Set) openAll(ctx, patient context.Context, note func(string, error), options []Options) error {
	ctx, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	opens := make([]chan opening, len(options))
	for i, o := range options {
		opens[i] = s.openBeside(o)
	}
	var fatal error
	for i, o := range options {
		if err := s.first(ctx, patient, o, opens[i], note); err != nil {
			fatal = errors.Join(fatal, err)
		}
	}
	if fatal != nil {
		return errors.Join(fatal, s.Close())
	}
	return nil
}

// openBeside opens a pool in a goroutine, which a dead share may keep for ever.
func (s *Set) openBeside(o Options) chan opening {
	done := make(chan opening, 1)
	go func() {
		p, err := s.open(o)
		done <- opening{p, err}
	}()
	return done
}

// first waits for a pool's first opening.
func (s *Set) first(ctx, patient context.Context, o Options, opened chan opening, note func(string, error)) error {
	var r opening
	select {
	case r = <-opened:
	default:
		select {
		case r = <-opened:
		case <-patient.Done():
			s.setAway(o.Name, fmt.Errorf("open pool %s: its share has not answered", o.Name), note)
			go s.bring(ctx, o, opened, note)
			return nil
		}
	}
	if r.err == nil {
		if err := s.join(r.pool); err != nil {
			return errors.Join(err, r.pool.Close())
		}
		return nil
	}
	if !ofShare(r.err) {
		return r.err
	}
	s.setAway(o.Name, r.err, note)
	go s.bring(ctx, o, nil, note)
	return nil
}

func ofShare(err error) bool {
	for _, e := range shareErrors {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (s *Set) setAway(name string, why error, note func(string, error)) {
	err := fmt.Errorf("%w: %w", ErrAway, why)
	s.mu.Lock()
	old := s.have.Load()
	now := *old
	now.away = map[string]error{name: err}
	for n, e := range old.away {
		if n != name {
			now.away[n] = e
		}
	}
	s.have.Store(&now)
	s.mu.Unlock()
	note(name, err)
}

// bring opens a pool that is away; opened is an attempt under way, or nil.
func (s *Set) bring(ctx context.Context, o Options, opened chan opening, note func(string, error)) {
	for pause := awayPause; ; pause = min(2*pause, awayPauseMax) {
		if opened == nil {
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
			opened = s.openBeside(o)
		}
		select {
		case <-ctx.Done():
			go closeLate(opened)
			return
		case r := <-opened:
			opened = nil
			err := r.err
			if err == nil {
				if err = s.join(r.pool); err == nil {
					note(o.Name, nil)
					return
				}
				err = errors.Join(err, r.pool.Close())
			}
			s.setAway(o.Name, err, note)
		}
	}
}

// closeLate closes a pool that opens after all, for nobody.
func closeLate(opened chan opening) {
	if r := <-opened; r.err == nil {
		_ = r.pool.Close()
	}
}
