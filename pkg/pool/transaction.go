package pool

import (
	"context"
	"errors"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/fsx"
)

// errKeep makes [session.account] leave the account as it is.
var errKeep = errors.New("account unchanged")

// account runs change under the account's lock and writes what it leaves,
// durably; then, still under the lock, it runs after. Records written in either
// are thereby fenced against whoever took this operation for dead.
// errNoAccount if there is no usable account.
func (s *session) account(ctx context.Context, change func(*account) error, after func() error) (err error) {
	at := s.at
	if err := s.take(ctx, lockAccount); err != nil {
		return err
	}
	defer func() {
		s.at = at
		if gerr := s.give(lockAccount); err == nil {
			err = gerr
		}
	}()
	a, err := s.p.readAccount()
	if err != nil {
		return err
	}
	switch err := change(a); {
	case errors.Is(err, errKeep):
		return nil
	case err != nil:
		return err
	}
	if err := s.writeAccount(a); err != nil || after == nil {
		return err
	}
	if err := s.fresh(); err != nil {
		return err
	}
	return after()
}

func (s *session) writeAccount(a *account) error {
	if err := s.fresh(); err != nil {
		return err
	}
	if a.Committed < 0 {
		// Somebody changed records by hand. Those are right; the next
		// operation counts them.
		return s.p.tree.Remove(fileAccount)
	}
	b, err := encodeObject(&a.accountStored, a.extra)
	if err != nil {
		return err
	}
	write := func() error { return s.p.tree.Replace(fileAccount, b) }
	if a.frees {
		return s.p.spending(write)
	}
	return write()
}

// begin writes an operation into the account and then, under the same lock,
// runs mark, if given. Dead operations on the same volume are resolved first.
func (s *session) begin(ctx context.Context, o *operation, mark func() error) error {
	if err := s.enter(ctx); err != nil {
		return err
	}
	for collected := false; ; {
		var dead []*operation
		err := s.account(ctx, func(a *account) error {
			if dead = a.of(o.hash); len(dead) > 0 {
				return errUnfinished
			}
			return s.p.admit(a, o)
		}, mark)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errUnfinished):
			err = s.resolveAll(ctx, dead)
		case errors.Is(err, errNoAccount):
			err = s.recount(ctx)
		case errors.Is(err, ErrNoSpace) && !collected:
			// What dead operations hold must not make the pool look full.
			collected = true
			if c, cerr := s.p.collect(ctx); cerr == nil && c.Operations > 0 {
				err = nil
			}
		}
		if err != nil {
			return err
		}
	}
}

// errUnfinished: an earlier operation on the volume has to be resolved first.
var errUnfinished = errors.New("unfinished operations")

func (s *session) resolveAll(ctx context.Context, dead []*operation) error {
	for _, o := range dead {
		if err := s.resolve(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

// commit runs change, which makes the operation visible in its record, and
// settles the operation, both under the account's lock.
func (s *session) commit(ctx context.Context, o *operation, change func() error) error {
	return s.account(ctx, func(a *account) error {
		if cur := a.Operations[o.key]; cur == nil || cur.Aborting {
			return errSuperseded
		}
		if err := s.fresh(); err != nil {
			return err
		}
		if err := change(); err != nil {
			return err
		}
		a.settle(o)
		a.frees = o.Kind == opDelete
		return nil
	}, nil)
}

// enter joins the operations that recount waits for.
func (s *session) enter(ctx context.Context) error {
	if s.entered {
		return nil
	}
	if err := s.poll(ctx, lockPool, false); err != nil {
		return err
	}
	s.entered = true
	return nil
}

// recount makes the account anew from all records. It waits until no
// accounted operation is under way in any process.
func (s *session) recount(ctx context.Context) error {
	if err := fsx.Unlock(s.f, byteAt(lockPool)); err != nil {
		return err
	}
	s.entered = false
	if err := s.poll(ctx, lockPool, true); err != nil {
		return err
	}
	a, err := s.p.sumRecords(ctx)
	if err != nil {
		return err
	}
	at := s.at
	if err := s.take(ctx, lockAccount); err != nil {
		return err
	}
	defer func() {
		s.at = at
		s.give(lockAccount) //nolint:errcheck // ends with the session at the latest
	}()
	// Another process may have been faster, or have taken this one for dead.
	if _, err := s.p.readAccount(); errors.Is(err, errNoAccount) {
		err = s.writeAccount(a)
		if err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	s.entered = true
	return fsx.TryLock(s.f, byteAt(lockPool), false) // from exclusive to shared
}

// sumRecords is the account that the records make. What is being deleted is
// written down as such, so that it is finished. Records that cannot be read
// count nothing; Problems names them.
func (p *Pool) sumRecords(ctx context.Context) (*account, error) {
	a := &account{accountStored: accountStored{Operations: map[string]*operation{}}}
	err := p.eachLineage(ctx, func(_ string, r *record, err error) error {
		if errors.Is(err, ErrDamaged) || errors.Is(err, ErrFormat) {
			return nil
		}
		if err != nil {
			return err
		}
		a.Committed += r.Committed
		if r.Deleting && len(a.Operations) < maxOperations/2 {
			o, err := p.deletion(r)
			if err != nil {
				return err
			}
			a.Operations[o.key] = o
		}
		return nil
	})
	return a, err
}
