package pool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"time"
	"unicode/utf8"
)

// maxGroup is how many volumes a group of snapshots may have.
const maxGroup = 128

// Group is snapshots of several volumes of a pool at one point in time.
type Group struct {
	ID   string
	Name string
	Pool string
	// Taken says that it exists: all of its snapshots do, since Created.
	Taken     bool
	Created   time.Time
	Snapshots []Snapshot // one for each volume, in the order of the volumes' ids
}

// groupRecord is groups/<shard>/<hash>.json. Its snapshots are those whose names
// are made of its id and their number, so that it need not list them. They are
// no snapshots to anybody before the record says taken, nor when it no more does
// (I-POOL-18).
type groupRecord struct {
	groupStored
	id    volumeID
	extra extras
}

type groupStored struct {
	ID        string     `json:"id"`
	Name      string     `json:"name,omitempty"`
	NameBytes []byte     `json:"nameBytes,omitempty"`
	Volumes   []string   `json:"volumes"` // ids, sorted
	Reserved  time.Time  `json:"reserved"`
	Taken     *time.Time `json:"taken,omitempty"`
}

func (r *groupRecord) name() string {
	if r.NameBytes != nil {
		return string(r.NameBytes)
	}
	return r.Name
}

func groupPath(h hash) string { return path.Join(dirGroups, h.shard(), h.String()+".json") }

// member is the name of a group's ith snapshot.
func (r *groupRecord) member(i int) string { return fmt.Sprintf("%s/%d", r.ID, i) }

func decodeGroup(b []byte, pool string, h hash) (*groupRecord, error) {
	r := &groupRecord{}
	var err error
	if r.extra, err = decodeObject(b, &r.groupStored); err != nil {
		return nil, err
	}
	if r.id, err = parseID(r.ID); err != nil || r.id.pool != pool || r.id.hash != h {
		return nil, fmt.Errorf("%w: id %.128q is malformed or belongs elsewhere", ErrDamaged, r.ID)
	}
	if n := r.name(); n == "" || len(n) > MaxName || hashOf(n) != h {
		return nil, fmt.Errorf("%w: its name does not have the hash of its id", ErrDamaged)
	}
	if len(r.Volumes) == 0 || len(r.Volumes) > maxGroup || !slices.IsSorted(r.Volumes) {
		return nil, fmt.Errorf("%w: %d volumes, or not in order", ErrDamaged, len(r.Volumes))
	}
	for _, v := range r.Volumes {
		if id, err := parseID(v); err != nil || id.pool != pool {
			return nil, fmt.Errorf("%w: volume %.128q", ErrDamaged, v)
		}
	}
	return r, nil
}

// readGroup returns the record of a group's name. fs.ErrNotExist, ErrDamaged.
func (p *Pool) readGroup(h hash) (*groupRecord, error) {
	name := groupPath(h)
	b, err := p.readFile(path.Dir(name), path.Base(name), maxFile)
	if err != nil {
		return nil, err
	}
	r, err := decodeGroup(b, p.name, h)
	if err != nil {
		return nil, fmt.Errorf("pool %s: record %s: %w", p.name, name, err)
	}
	return r, nil
}

// groupTaken reports whether the group of a snapshot exists.
func (p *Pool) groupTaken(id string) bool {
	g, err := parseID(id)
	if err != nil {
		return false
	}
	r, err := p.readGroup(g.hash)
	return err == nil && r.id == g && r.Taken != nil
}

func (p *Pool) lockGroup(ctx context.Context, h hash) (*session, error) {
	return p.newSession(h, func(s *session) error { return s.take(ctx, hashOf("group "+h.String()).lock()) })
}

// ReserveGroup returns the group of that name. If it has not been taken, its
// snapshots are reserved anew: they have to be [Set.Cut], and then [Set.CommitGroup]
// makes the group exist. All volumes are of one pool: else ErrNotTogether.
// ErrNotFound, ErrConflict, ErrInvalid.
func (s *Set) ReserveGroup(ctx context.Context, name string, volumes []string) (Group, error) {
	volumes = slices.Compact(slices.Sorted(slices.Values(volumes)))
	switch {
	case name == "" || len(name) > MaxName:
		return Group{}, fmt.Errorf("group name of %d bytes: %w: 1 to %d", len(name), ErrInvalid, MaxName)
	case len(volumes) == 0 || len(volumes) > maxGroup:
		return Group{}, fmt.Errorf("group %q of %d volumes: %w: 1 to %d", name, len(volumes), ErrInvalid, maxGroup)
	}
	var p *Pool
	for _, v := range volumes {
		of, id, err := s.of(v)
		if err != nil {
			return Group{}, err
		}
		if _, err := of.live(id); err != nil {
			return Group{}, err
		}
		if p != nil && of != p {
			return Group{}, fmt.Errorf("group %q: %w: volumes of the pools %s and %s", name, ErrNotTogether, p.name, of.name)
		}
		p = of
	}
	g, err := p.reserveGroup(ctx, name, volumes)
	return g, p.notWritable(err)
}

func (p *Pool) reserveGroup(ctx context.Context, name string, volumes []string) (Group, error) {
	l, err := p.lockGroup(ctx, hashOf(name))
	if err != nil {
		return Group{}, err
	}
	defer l.close()
	r, err := p.readGroup(l.hash)
	switch {
	case err == nil && (r.name() != name || !slices.Equal(r.Volumes, volumes)):
		return Group{}, fmt.Errorf("group %q: %w: it is of the volumes %v", name, ErrConflict, r.Volumes)
	case err == nil && r.Taken != nil:
		return p.group(r)
	case err == nil: // of another moment
		err = l.deleteGroup(ctx, r)
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	}
	if err != nil {
		return Group{}, err
	}
	r = newGroup(p, name, volumes)
	b, err := encodeObject(&r.groupStored, nil)
	if err != nil {
		return Group{}, err
	}
	if err := p.tree.Mkdir(path.Dir(groupPath(r.id.hash))); err != nil {
		return Group{}, err
	}
	if err := p.tree.LinkOnce(groupPath(r.id.hash), b); err != nil {
		return Group{}, err
	}
	for i, v := range volumes {
		id, err := parseID(v)
		if err == nil {
			_, err = p.reserveSnapshot(ctx, id, SnapshotSpec{Name: r.member(i), Volume: v, Group: r.ID})
		}
		if err != nil {
			return Group{}, errors.Join(err, l.deleteGroup(context.WithoutCancel(ctx), r))
		}
	}
	return p.group(r)
}

func newGroup(p *Pool, name string, volumes []string) *groupRecord {
	id := volumeID{pool: p.name, hash: hashOf(name), inc: newIncarnation()}
	r := &groupRecord{id: id, groupStored: groupStored{
		ID: id.String(), Volumes: volumes, Reserved: time.Now().UTC().Truncate(time.Millisecond),
	}}
	if utf8.ValidString(name) {
		r.Name = name
	} else {
		r.NameBytes = []byte(name)
	}
	return r
}

// group is what the records say together.
func (p *Pool) group(r *groupRecord) (Group, error) {
	g := Group{ID: r.ID, Name: r.name(), Pool: p.name, Taken: r.Taken != nil}
	if g.Taken {
		g.Created = *r.Taken
	}
	for i := range r.Volumes {
		sr, err := p.readSnapshot(dirSnapshots, hashOf(r.member(i)))
		if errors.Is(err, fs.ErrNotExist) && !g.Taken {
			continue // its deletion, or its reservation, was cut short
		}
		if err != nil {
			return Group{}, fmt.Errorf("group %s: its snapshot of volume %s: %w", r.ID, r.Volumes[i], err)
		}
		v, err := p.volumeOf(sr)
		if err != nil {
			return Group{}, err
		}
		g.Snapshots = append(g.Snapshots, p.snapshotOf(sr, v))
	}
	return g, nil
}

// CommitGroup makes a group exist whose snapshots have all been cut. ErrNoSnapshot
// if one has not.
func (s *Set) CommitGroup(ctx context.Context, id string) (Group, error) {
	p, gid, err := s.ofSnapshot(id)
	if err != nil {
		return Group{}, err
	}
	l, err := p.lockGroup(ctx, gid.hash)
	if err != nil {
		return Group{}, err
	}
	defer l.close()
	r, err := p.findGroup(gid)
	if err != nil {
		return Group{}, err
	}
	now := time.Now().UTC().Truncate(time.Millisecond)
	for i := range r.Volumes {
		sr, err := p.readSnapshot(dirSnapshots, hashOf(r.member(i)))
		if err != nil {
			return Group{}, fmt.Errorf("group %s: %w", id, err)
		}
		v, err := p.volumeOf(sr)
		if err != nil {
			return Group{}, err
		}
		if v == nil {
			return Group{}, fmt.Errorf("group %s: volume %s: %w", id, r.Volumes[i], ErrNotFound)
		}
		if _, cut := v.snapshot(sr.ID); !cut {
			return Group{}, fmt.Errorf("group %s: snapshot %s: %w: it has not been taken", id, sr.ID, ErrNoSnapshot)
		}
	}
	if r.Taken == nil {
		r.Taken = &now
		if err := l.replaceGroup(r); err != nil {
			return Group{}, err
		}
	}
	return p.group(r)
}

func (s *session) replaceGroup(r *groupRecord) error {
	b, err := encodeObject(&r.groupStored, r.extra)
	if err != nil {
		return err
	}
	if err := s.fresh(); err != nil {
		return err
	}
	return s.p.spending(func() error { return s.p.tree.Replace(groupPath(r.id.hash), b) })
}

// findGroup returns the record of a group's id: ErrNoSnapshot.
func (p *Pool) findGroup(id volumeID) (*groupRecord, error) {
	r, err := p.readGroup(id.hash)
	if errors.Is(err, fs.ErrNotExist) || err == nil && r.id != id {
		return nil, fmt.Errorf("group snapshot %s: %w", id, ErrNoSnapshot)
	}
	return r, err
}

// Group returns a group. ErrNoSnapshot.
func (s *Set) Group(_ context.Context, id string) (Group, error) {
	p, gid, err := s.ofSnapshot(id)
	if err != nil {
		return Group{}, err
	}
	r, err := p.findGroup(gid)
	if err != nil {
		return Group{}, err
	}
	return p.group(r)
}

// DeleteGroup removes a group and its snapshots, whatever has become of them.
// Unknown ids are success.
func (s *Set) DeleteGroup(ctx context.Context, id string) error {
	gid, err := parseID(id)
	if err != nil {
		return nil //nolint:nilerr // a group that cannot be is as gone as it gets
	}
	p, err := s.Pool(gid.pool)
	if err != nil {
		return fmt.Errorf("delete group snapshot %s: %w", id, err)
	}
	l, err := p.lockGroup(ctx, gid.hash)
	if err != nil {
		return err
	}
	defer l.close()
	r, err := p.findGroup(gid)
	if errors.Is(err, ErrNoSnapshot) {
		return nil
	}
	if err == nil {
		err = l.deleteGroup(ctx, r)
	}
	return p.notWritable(err)
}

// deleteGroup: record no more taken -> snapshots deleted -> record removed.
func (s *session) deleteGroup(ctx context.Context, r *groupRecord) error {
	if r.Taken != nil {
		r.Taken = nil
		if err := s.replaceGroup(r); err != nil {
			return err
		}
	}
	for i := range r.Volumes {
		sr, err := s.p.readSnapshot(dirSnapshots, hashOf(r.member(i)))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = s.p.deleteSnapshot(ctx, sr.id, false)
		}
		if err != nil {
			return fmt.Errorf("delete group snapshot %s: %w", r.ID, err)
		}
	}
	return s.p.tree.Remove(groupPath(r.id.hash))
}
