package pool

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
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

	frees bool // what is being done frees space; see spending
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
	// Before is what the record committed before a change of its images.
	Before int64 `json:"committedBefore,omitempty"`
	// Layers are the images below it that an import makes with it, from the bottom up.
	Layers []string `json:"layers,omitempty"`
	// Parent is the image, of another volume, that a creation's image is a child of.
	Parent string `json:"parent,omitempty"`
	// Drop: the image is being removed.
	Drop bool `json:"drop,omitempty"`
	// Copy: the image holds nothing that is not elsewhere too.
	Copy bool `json:"copy,omitempty"`
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
	// opChange puts images into a record or takes some out. Image is the one
	// that is made or removed; the record says how far that has come.
	opChange opKind = "change"
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
	known := o.Kind == opCreate || o.Kind == opGrow || o.Kind == opDelete || o.Kind == opChange
	for _, l := range o.Layers {
		known = known && validImage(l)
	}
	return ok && iok && known && len(o.Layers) <= maxLayers && validImage(o.Image) && (o.Parent == "" || validImage(o.Parent)) && o.Bytes >= 0 && o.Bytes <= maxCommitted
}

// images are those that the operation is on, from the bottom up.
func (o *operation) images() []string { return append(slices.Clone(o.Layers), o.Image) }

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

// settleChange ends a change of images, of which r shows the outcome.
func (a *account) settleChange(o *operation, r *record) {
	delete(a.Operations, o.key)
	a.Committed += r.Committed - o.Before
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
	a.frees = o.Kind == opDelete || o.Drop
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
