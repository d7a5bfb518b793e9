package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// Set is all pools of a process. A volume id names its pool, so no call asks
// more than one.
type Set struct {
	pools  []*Pool // the default first
	byName map[string]*Pool
}

// NewSet joins pools of distinct names. The first is the default.
func NewSet(pools ...*Pool) (*Set, error) {
	if len(pools) == 0 {
		return nil, fmt.Errorf("%w: no pool", ErrInvalid)
	}
	s := &Set{pools: pools, byName: map[string]*Pool{}}
	uuids := map[string]string{}
	for _, p := range pools {
		if s.byName[p.name] != nil {
			return nil, fmt.Errorf("%w: two pools are named %q", ErrInvalid, p.name)
		}
		if other, ok := uuids[p.uuid]; ok {
			return nil, fmt.Errorf("%w: pools %s and %s are copies of each other", ErrInvalid, other, p.name)
		}
		s.byName[p.name] = p
		uuids[p.uuid] = p.name
	}
	return s, nil
}

// Close closes every pool.
func (s *Set) Close() error {
	var errs []error
	for _, p := range s.pools {
		errs = append(errs, p.Close())
	}
	return errors.Join(errs...)
}

// Pools returns all pools, the default first.
func (s *Set) Pools() []*Pool { return slices.Clone(s.pools) }

// Pool returns the pool of this name, the default one for "". ErrNoPool lists
// the names there are.
func (s *Set) Pool(name string) (*Pool, error) {
	if name == "" {
		return s.pools[0], nil
	}
	if p := s.byName[name]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("pool %.64q: %w; there are %s", name, ErrNoPool, strings.Join(s.names(), ", "))
}

func (s *Set) names() []string {
	var names []string
	for _, p := range s.pools {
		names = append(names, p.name)
	}
	slices.Sort(names)
	return names
}

// CreateVolume makes the volume or returns the one of that name that fits.
// Names are those of one pool: the same name in two pools is two volumes.
// ErrConflict, ErrNoSpace, ErrInvalid, ErrOutOfRange, ErrNoPool.
func (s *Set) CreateVolume(ctx context.Context, spec Spec) (Volume, error) {
	p, err := s.Pool(spec.Pool)
	if err != nil {
		return Volume{}, err
	}
	return p.createVolume(ctx, spec)
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
	return p.deleteVolume(ctx, v)
}

// of finds the pool of a volume id: ErrNotFound.
func (s *Set) of(id string) (*Pool, volumeID, error) {
	v, err := parseID(id)
	if err != nil {
		return nil, v, err
	}
	p := s.byName[v.pool]
	if p == nil {
		return nil, v, fmt.Errorf("volume %s: %w: its pool is not served here; there are %s", id, ErrNotFound, strings.Join(s.names(), ", "))
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

// maxPage is how many volumes a page has where nobody says.
const maxPage = 1000

// List returns at most max volumes (0: 1000) from where token says, and the
// token to go on with, "" at the end. The order is that of the pools' names and
// then of the ids, and stays. ErrBadToken.
func (s *Set) List(ctx context.Context, token string, max int) ([]Volume, string, error) {
	if max <= 0 {
		max = maxPage
	}
	var at position
	if token != "" {
		var err error
		if at, err = parseToken(token); err != nil {
			return nil, "", err
		}
		if s.byName[at.pool] == nil {
			return nil, "", fmt.Errorf("list token: %w: its pool %s is not served here", ErrBadToken, at.pool)
		}
	}
	var vols []Volume
	pools := slices.SortedFunc(slices.Values(s.pools), func(a, b *Pool) int { return cmp.Compare(a.name, b.name) })
	for _, p := range pools {
		if p.name < at.pool {
			continue
		}
		after := ""
		if p.name == at.pool {
			after = at.hash
		}
		got, last, more, err := p.list(ctx, after, max-len(vols))
		if err != nil {
			return nil, "", fmt.Errorf("list pool %s: %w", p.name, err)
		}
		vols = append(vols, got...)
		if last != "" {
			at = position{p.name, last}
		}
		if more {
			return vols, at.token(), nil
		}
	}
	return vols, "", nil
}

// Resize records the size the volume shall have (never less than it has) and
// grows the image unless somebody has it open; its holder then does.
// ErrNotFound, ErrNoSpace, ErrOutOfRange.
func (s *Set) Resize(ctx context.Context, id string, size int64) (Volume, error) {
	p, v, err := s.of(id)
	if err != nil {
		return Volume{}, err
	}
	return p.resize(ctx, v, size)
}

// Attach records that node may stage the volume. ErrNotFound, ErrNoNode,
// ErrAttachedElsewhere, ErrIncompatible.
func (s *Set) Attach(ctx context.Context, id, node string, readOnly bool) error {
	p, v, err := s.of(id)
	if err != nil {
		return err
	}
	return p.attach(ctx, v, node, readOnly)
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
	return p.detach(ctx, v, node)
}

// SetUse records the volume's use durably. ErrNotFound; ErrInvalid for a step
// that [Use] does not have.
func (s *Set) SetUse(ctx context.Context, id string, u Use) error {
	p, v, err := s.of(id)
	if err != nil {
		return err
	}
	return p.setUse(ctx, v, u, "")
}

// BeginFormat is SetUse(UseFormatting) that also records, durably and at once,
// the filesystem it is being formatted with.
func (s *Set) BeginFormat(ctx context.Context, id, fsType string) error {
	p, v, err := s.of(id)
	if err != nil {
		return err
	}
	return p.setUse(ctx, v, UseFormatting, fsType)
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

// RegisterNode makes the node known in every pool.
func (s *Set) RegisterNode(_ context.Context, n Node) error {
	var errs []error
	for _, p := range s.pools {
		errs = append(errs, p.registerNode(n))
	}
	return errors.Join(errs...)
}

// Node returns a registered node. ErrNoNode.
func (s *Set) Node(_ context.Context, id string) (Node, error) {
	var first error
	for _, p := range s.pools {
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
	for _, p := range s.pools {
		all = append(all, p.problems(ctx)...)
	}
	return all
}

// Collect is [Pool.Collect] of every pool.
func (s *Set) Collect(ctx context.Context) (Collected, error) {
	var sum Collected
	var errs []error
	for _, p := range s.pools {
		c, err := p.Collect(ctx)
		sum.Operations += c.Operations
		sum.Temporary += c.Temporary
		errs = append(errs, err)
	}
	return sum, errors.Join(errs...)
}
