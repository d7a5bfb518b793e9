package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// Set is all pools of a process. A volume id names its pool, so no call asks
// more than one. A pool whose share does not answer is away: calls for its
// volumes are ErrAway until it does (see [OpenSet]).
type Set struct {
	names []string // in the order given, the default first
	have  atomic.Pointer[present]

	open func(Options) (*Pool, error) // tests make it hang

	mu   sync.Mutex // over changes of have, and what follows
	node *Node      // as registered last, for pools that come later
	stop context.CancelFunc

	controller *Controller // likewise

	loads nodeLoads
}

// present is which pools are open; replaced as a whole.
type present struct {
	pools  []*Pool // in the order of Set.names
	byName map[string]*Pool
	away   map[string]error // why the others are not
}

// NewSet joins pools of distinct names. The first is the default.
func NewSet(pools ...*Pool) (*Set, error) {
	var names []string
	for _, p := range pools {
		names = append(names, p.name)
	}
	s, err := emptySet(names)
	for _, p := range pools {
		if err == nil {
			err = s.join(p)
		}
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

func emptySet(names []string) (*Set, error) {
	if len(names) == 0 {
		return nil, fmt.Errorf("%w: no pool", ErrInvalid)
	}
	for i, n := range names {
		if slices.Contains(names[:i], n) {
			return nil, fmt.Errorf("%w: two pools are named %q", ErrInvalid, n)
		}
	}
	s := &Set{names: names, open: Open, stop: func() {}}
	s.have.Store(&present{})
	return s, nil
}

// join adds an open pool.
func (s *Set) join(p *Pool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.have.Load()
	for _, other := range old.pools {
		if other.uuid == p.uuid {
			return fmt.Errorf("%w: pools %s and %s are copies of each other", ErrInvalid, other.name, p.name)
		}
	}
	if s.node != nil {
		if err := p.registerNode(*s.node); err != nil {
			return err
		}
	}
	if s.controller != nil {
		p.registerController(*s.controller) //nolint:errcheck // it registers again and again; a full share must not keep its pool closed
	}
	now := &present{byName: map[string]*Pool{p.name: p}, away: maps.Clone(old.away)}
	maps.Copy(now.byName, old.byName)
	delete(now.away, p.name)
	for _, name := range s.names {
		if q := now.byName[name]; q != nil {
			now.pools = append(now.pools, q)
		}
	}
	s.have.Store(now)
	return nil
}

// Close closes every pool.
func (s *Set) Close() error {
	s.stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, p := range s.Pools() {
		errs = append(errs, p.Close())
	}
	return errors.Join(errs...)
}

// Pools returns all pools that are open, in the order given.
func (s *Set) Pools() []*Pool { return slices.Clone(s.have.Load().pools) }

// Pool returns the pool of this name, the default one for "". ErrNoPool lists
// the names there are. ErrAway.
func (s *Set) Pool(name string) (*Pool, error) {
	name = cmp.Or(name, s.names[0])
	have := s.have.Load()
	if p := have.byName[name]; p != nil {
		return p, nil
	}
	if err := have.away[name]; err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("pool %.64q: %w; there are %s", name, ErrNoPool, s.list())
}

func (s *Set) list() string {
	names := slices.Clone(s.names)
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// whole returns every pool, or ErrAway where one is missing.
func (s *Set) whole() ([]*Pool, error) {
	have := s.have.Load()
	for _, name := range s.names {
		if err := have.away[name]; err != nil {
			return nil, err
		}
	}
	return have.pools, nil
}

// CreateVolume makes the volume or returns the one of that name that fits.
// Names are those of one pool: the same name in two pools is two volumes.
// ErrConflict, ErrNoSpace, ErrInvalid, ErrOutOfRange, ErrNoPool, ErrNotWritable.
func (s *Set) CreateVolume(ctx context.Context, spec Spec) (Volume, error) {
	p, err := s.Pool(spec.Pool)
	if err != nil {
		return Volume{}, err
	}
	v, err := p.createVolume(ctx, spec)
	return v, p.notWritable(err)
}

// DeleteVolume removes a volume. Unknown ids are success, but for the id of a
// volume in a pool that is not served here: ErrNoPool, for its data is not gone.
// ErrInUse while its image is open or it is attached.
func (s *Set) DeleteVolume(ctx context.Context, id string) error {
	v, err := parseID(id)
	if err != nil {
		return nil //nolint:nilerr // a volume that cannot be is as gone as it gets
	}
	p, err := s.Pool(v.pool)
	if err != nil {
		return fmt.Errorf("delete volume %s: %w", id, err)
	}
	return p.notWritable(p.deleteVolume(ctx, v))
}

// of finds the pool of a volume id: ErrNotFound, ErrAway.
func (s *Set) of(id string) (*Pool, volumeID, error) {
	v, err := parseID(id)
	if err != nil {
		return nil, v, err
	}
	p, err := s.Pool(v.pool)
	if errors.Is(err, ErrNoPool) {
		err = fmt.Errorf("%w: its pool is not served here; there are %s", ErrNotFound, s.list())
	}
	if err != nil {
		return nil, v, fmt.Errorf("volume %s: %w", id, err)
	}
	return p, v, nil
}

// Volume returns a volume. ErrNotFound.
func (s *Set) Volume(_ context.Context, id string) (Volume, error) {
	p, v, err := s.of(id)
	if err != nil {
		return Volume{}, err
	}
	r, err := p.live(v)
	if err != nil {
		return Volume{}, err
	}
	return p.volume(r), nil
}

// Find returns the volume of a name in a pool, the default one for "". ErrNotFound.
func (s *Set) Find(_ context.Context, poolName, name string) (Volume, error) {
	p, err := s.Pool(poolName)
	if err != nil {
		return Volume{}, err
	}
	r, err := p.readRecord(hashOf(name))
	if errors.Is(err, fs.ErrNotExist) || err == nil && (r.Deleting || r.name() != name) {
		return Volume{}, fmt.Errorf("volume %q: %w", name, ErrNotFound)
	}
	if err != nil {
		return Volume{}, err
	}
	return p.volume(r), nil
}

// maxPage is how many volumes a page has where nobody says.
const maxPage = 1000

// List returns at most max volumes (0: 1000) from where token says, and the
// token to go on with, "" at the end. The order is that of the pools' names and
// then of the ids, and stays. ErrBadToken.
func (s *Set) List(ctx context.Context, token string, max int) (vols []Volume, next string, err error) {
	max = pageSize(max)
	next, err = s.page(token, func(p *Pool, after string) (string, bool, error) {
		got, last, more, err := p.list(ctx, after, max-len(vols))
		vols = append(vols, got...)
		return last, more, err
	})
	if err != nil {
		return nil, "", fmt.Errorf("list volumes: %w", err)
	}
	return vols, next, nil
}

// Resize records the size the volume shall have (never less than it has) and
// grows the image unless somebody has it open; its holder then does.
// ErrNotFound, ErrNoSpace, ErrOutOfRange.
func (s *Set) Resize(ctx context.Context, id string, size int64) (Volume, error) {
	p, v, err := s.of(id)
	if err != nil {
		return Volume{}, err
	}
	vol, err := p.resize(ctx, v, size)
	return vol, p.notWritable(err)
}

// Attach records that node may stage the volume. ErrNotFound, ErrNoNode,
// ErrAttachedElsewhere, ErrIncompatible, ErrNodeFull.
func (s *Set) Attach(ctx context.Context, id, node string, readOnly bool) error {
	p, v, err := s.of(id)
	if err != nil {
		return err
	}
	if _, err := p.live(v); err != nil {
		return err
	}
	n, err := p.node(node)
	if err != nil {
		return err
	}
	attach := func() error { return p.attach(ctx, v, node, readOnly) }
	if n.MaxVolumes > 0 {
		return p.notWritable(s.attachWithin(ctx, n, id, attach))
	}
	return p.notWritable(attach())
}

// Detach takes the record of it back: of node, or of all nodes for "".
// Success if there is none, but ErrNoPool for a volume in a pool that is not
// served here. ErrInUse while anybody has the image open.
func (s *Set) Detach(ctx context.Context, id, node string) error {
	v, err := parseID(id)
	if err != nil {
		return nil //nolint:nilerr // a volume that cannot be is attached nowhere
	}
	p, err := s.Pool(v.pool)
	if err != nil {
		return fmt.Errorf("detach volume %s: %w", id, err)
	}
	if err := p.detach(ctx, v, node); err != nil {
		return p.notWritable(err)
	}
	s.loads.left(id, node)
	return nil
}

// SetUse records the volume's use durably. ErrNotFound; ErrInvalid for a step
// that [Use] does not have.
func (s *Set) SetUse(ctx context.Context, id string, u Use) error {
	p, v, err := s.of(id)
	if err != nil {
		return err
	}
	return p.notWritable(p.setUse(ctx, v, u, ""))
}

// BeginFormat is SetUse(UseFormatting) that also records, durably and at once,
// the filesystem it is being formatted with.
func (s *Set) BeginFormat(ctx context.Context, id, fsType string) error {
	p, v, err := s.of(id)
	if err != nil {
		return err
	}
	return p.notWritable(p.setUse(ctx, v, UseFormatting, fsType))
}

// OpenImage opens the volume's image through its lease: at most one writer on
// all nodes. Closing the image ends the lease. It waits for the I/O of a dead
// process of this node. ErrNotFound, ErrInUse, ErrBusy, ErrDamaged, and what
// [vhdx.Open] answers.
func (s *Set) OpenImage(ctx context.Context, id string, readOnly bool, o vhdx.OpenOptions) (*vhdx.Image, error) {
	p, v, err := s.of(id)
	if err != nil {
		return nil, err
	}
	return p.openImage(ctx, v, readOnly, o)
}

// RegisterNode makes the node known in every pool, those that are away when
// they come back.
func (s *Set) RegisterNode(_ context.Context, n Node) error {
	s.mu.Lock()
	s.node = &n
	there := s.Pools()
	s.mu.Unlock() // a share that hangs holds up nobody else
	var errs []error
	for _, p := range there {
		errs = append(errs, p.notWritable(p.registerNode(n)))
	}
	return errors.Join(errs...)
}

// Node returns a registered node. ErrNoNode; ErrAway where that is not sure.
func (s *Set) Node(_ context.Context, id string) (Node, error) {
	_, first := s.whole()
	for _, p := range s.Pools() {
		n, err := p.node(id)
		if err == nil {
			return n, nil
		}
		if first == nil || errors.Is(first, ErrNoNode) {
			first = err
		}
	}
	return Node{}, first
}

// Problems names what does not belong in the pools or cannot be read. It reads
// every record, so it is for people and for now and then.
func (s *Set) Problems(ctx context.Context) []Problem {
	var all []Problem
	for _, p := range s.Pools() {
		all = append(all, p.problems(ctx)...)
	}
	return all
}

// Collect is [Pool.Collect] of every pool.
func (s *Set) Collect(ctx context.Context) (Collected, error) {
	var sum Collected
	var errs []error
	for _, p := range s.Pools() {
		c, err := p.Collect(ctx)
		sum.Operations += c.Operations
		sum.Temporary += c.Temporary
		sum.Controllers += c.Controllers
		errs = append(errs, err)
	}
	return sum, errors.Join(errs...)
}
