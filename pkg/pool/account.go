package pool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/fsx"
)

// The account holds the sum of what all records commit, and every operation
// that is about to change that sum. It is one small file, so each change of it
// is a transaction:
//
//	begin    account: +operation                     (room is checked here)
//	...      the image is built or removed
//	commit   record linked, replaced or removed; account: sum changed, -operation
//
// begin and commit each run under the account's lock. Between the two halves of
// commit, and after a crash anywhere, the operation is still written down, and
// the record says whether it happened (resolve). So no create, delete or growth
// reads any record but its own, and none is counted twice or forgotten
// (I-POOL-7).
type account struct {
	accountStored
	extra extras
}

type accountStored struct {
	Committed  int64                 `json:"committed"`
	Operations map[string]*operation `json:"operations,omitempty"`
}

// maxOperations bounds the unfinished operations of a pool, dead ones included.
const maxOperations = 1000

// operation is an unfinished creation, growth or deletion.
type operation struct {
	Kind        opKind `json:"kind"`
	Hash        string `json:"hash"`
	Incarnation string `json:"incarnation"`
	Image       string `json:"image"`
	// Bytes is what the operation adds to the sum, or takes from it for a deletion.
	Bytes int64 `json:"bytes"`
	// Committed is what the record commits once a growth has happened.
	Committed int64 `json:"committedAfter,omitempty"`
	// Fixed: Bytes will be taken from the filesystem at once.
	Fixed bool `json:"fixed,omitempty"`
	// Aborting: found dead and being undone. It must not be committed any more.
	Aborting bool      `json:"aborting,omitempty"`
	Node     string    `json:"node,omitempty"`
	Since    time.Time `json:"since"`

	key  string
	hash hash
}

type opKind string

const (
	opCreate opKind = "create"
	opGrow   opKind = "grow"
	opDelete opKind = "delete"
)

// errNoAccount: the account is missing or damaged. It is made anew from the records.
var errNoAccount = errors.New("the account of committed bytes has to be made anew")

// errSuperseded: an operation is not in the account any more. Somebody took
// this process for dead.
var errSuperseded = errors.New("the operation was taken over")

func (p *Pool) newOperation(kind opKind, r *record, bytes int64) *operation {
	return &operation{
		Kind: kind, Hash: r.id.hash.String(), Incarnation: r.id.inc.String(), Image: r.Image, Bytes: bytes,
		Fixed: r.Params.Fixed, Node: p.holder.Node, Since: time.Now().UTC().Truncate(time.Second),
		key: fsx.Random(), hash: r.id.hash,
	}
}

// readAccount: errNoAccount, ErrFormat.
func (p *Pool) readAccount() (*account, error) {
	b, err := p.readFile(".", fileAccount, maxAccount)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNoAccount
	}
	if errors.Is(err, ErrDamaged) {
		return nil, fmt.Errorf("%w: %w", errNoAccount, err)
	}
	if err != nil {
		return nil, err
	}
	a, err := decodeAccount(b)
	if errors.Is(err, ErrDamaged) {
		return nil, fmt.Errorf("%s: %w: %w", fileAccount, errNoAccount, err)
	}
	return a, err
}

func decodeAccount(b []byte) (*account, error) {
	a := &account{}
	var err error
	if a.extra, err = decodeObject(b, &a.accountStored); err != nil {
		return nil, err
	}
	if a.Committed < 0 || len(a.Operations) > maxOperations {
		return nil, fmt.Errorf("%w: committed %d, %d operations", ErrDamaged, a.Committed, len(a.Operations))
	}
	for key, o := range a.Operations {
		if o == nil || !o.valid() {
			return nil, fmt.Errorf("%w: operation %.64q", ErrDamaged, key)
		}
		o.key = key
	}
	return a, nil
}

func (o *operation) valid() bool {
	h, ok := parseHash(o.Hash)
	o.hash = h
	_, iok := parseIncarnation(o.Incarnation)
	known := o.Kind == opCreate || o.Kind == opGrow || o.Kind == opDelete
	return ok && iok && known && validImage(o.Image) && o.Bytes >= 0 && o.Bytes <= maxCommitted
}

// reserved is the sum with everything under way, and how much of that fixed
// images will take from the filesystem.
func (a *account) reserved() (committed, fixed int64) {
	committed = a.Committed
	for _, o := range a.Operations {
		if o.Kind == opDelete {
			continue
		}
		committed += o.Bytes
		if o.Fixed {
			fixed += o.Bytes
		}
	}
	return committed, fixed
}

// settle ends an operation that happened.
func (a *account) settle(o *operation) {
	delete(a.Operations, o.key)
	if o.Kind == opDelete {
		a.Committed -= o.Bytes
	} else {
		a.Committed += o.Bytes
	}
}

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
	return s.p.spending(func() error { return s.p.tree.Replace(fileAccount, b) })
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
		return nil
	}, nil)
}

// admit adds an operation, if there is room for it.
func (p *Pool) admit(a *account, o *operation) error {
	if len(a.Operations) >= maxOperations {
		return fmt.Errorf("pool %s: %w: %d operations are unfinished", p.name, ErrBusy, len(a.Operations))
	}
	if o.Kind != opDelete {
		if err := p.checkRoom(a, o); err != nil {
			return err
		}
	}
	if a.Operations == nil {
		a.Operations = map[string]*operation{}
	}
	a.Operations[o.key] = o
	return nil
}

// of returns the operations on one name.
func (a *account) of(h hash) (ops []*operation) {
	for _, o := range a.Operations {
		if o.hash == h {
			ops = append(ops, o)
		}
	}
	return ops
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
	err := p.eachRecord(ctx, func(_ string, r *record, err error) error {
		if errors.Is(err, ErrDamaged) || errors.Is(err, ErrFormat) {
			return nil
		}
		if err != nil {
			return err
		}
		a.Committed += r.Committed
		if r.Deleting && len(a.Operations) < maxOperations/2 {
			o := p.newOperation(opDelete, r, r.Committed)
			a.Operations[o.key] = o
		}
		return nil
	})
	return a, err
}
