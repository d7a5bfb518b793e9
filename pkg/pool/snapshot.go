package pool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"time"
	"unicode/utf8"
)

// Snapshot is a point in time of a volume.
type Snapshot struct {
	ID     string
	Name   string
	Pool   string
	Volume string // the id of the volume it was taken of, which may be gone
	Group  string // the id of the group it was taken in; "": none
	// Taken says that it exists, with its group if it is of one. What follows is
	// set as soon as it has been cut.
	Taken       bool
	Size        int64 // of the disk
	Bytes       int64 // that its own image takes on the share
	Created     time.Time
	Consistency Consistency
	Image       string // absolute path of its image file, for messages and tools
}

// SnapshotSpec says which snapshot to take.
type SnapshotSpec struct {
	Name   string // any bytes, 1 to MaxName of them
	Volume string // id
	Group  string // id of the group it is part of; "": none
	// Passing: it exists for the sake of a clone, is in no list, and goes when
	// the clone is made, or its maker is long dead.
	Passing bool
}

// snapshotRecord is snapshots/<shard>/<hash>.json, or that in cuts/ for one that
// passes. It reserves the name; that the snapshot was taken, and when, only the
// layers of the volume say.
type snapshotRecord struct {
	snapshotStored
	id    volumeID
	dir   string
	extra extras
}

type snapshotStored struct {
	ID        string    `json:"id"`
	Name      string    `json:"name,omitempty"`
	NameBytes []byte    `json:"nameBytes,omitempty"`
	Volume    string    `json:"volume"`
	Group     string    `json:"group,omitempty"`
	Reserved  time.Time `json:"reserved"`
}

func (r *snapshotRecord) name() string {
	if r.NameBytes != nil {
		return string(r.NameBytes)
	}
	return r.Name
}

func (r *snapshotRecord) path() string {
	return path.Join(r.dir, r.id.hash.shard(), r.id.hash.String()+".json")
}

func decodeSnapshot(b []byte, pool, dir string, h hash) (*snapshotRecord, error) {
	r := &snapshotRecord{dir: dir}
	var err error
	if r.extra, err = decodeObject(b, &r.snapshotStored); err != nil {
		return nil, err
	}
	if r.id, err = parseID(r.ID); err != nil || r.id.pool != pool || r.id.hash != h {
		return nil, fmt.Errorf("%w: id %.128q is malformed or belongs elsewhere", ErrDamaged, r.ID)
	}
	n := r.name()
	if n == "" || len(n) > MaxName || hashOf(n) != h || r.Name != "" && r.NameBytes != nil {
		return nil, fmt.Errorf("%w: its name does not have the hash of its id", ErrDamaged)
	}
	if v, err := parseID(r.Volume); err != nil || v.pool != pool || len(r.Group) > maxIDLen {
		return nil, fmt.Errorf("%w: it is of volume %.128q, group %.128q", ErrDamaged, r.Volume, r.Group)
	}
	return r, nil
}

// readSnapshot returns the record of a snapshot's name. fs.ErrNotExist, ErrDamaged.
func (p *Pool) readSnapshot(dir string, h hash) (*snapshotRecord, error) {
	name := path.Join(dir, h.shard(), h.String()+".json")
	b, err := p.readFile(path.Dir(name), path.Base(name), maxFile)
	if err != nil {
		return nil, err
	}
	r, err := decodeSnapshot(b, p.name, dir, h)
	if err != nil {
		return nil, fmt.Errorf("pool %s: record %s: %w", p.name, name, err)
	}
	return r, nil
}

// findSnapshot returns the record of a snapshot's id: ErrNoSnapshot.
func (p *Pool) findSnapshot(id volumeID) (*snapshotRecord, error) {
	for _, dir := range []string{dirSnapshots, dirCuts} {
		r, err := p.readSnapshot(dir, id.hash)
		if errors.Is(err, fs.ErrNotExist) || err == nil && r.id != id {
			continue
		}
		return r, err
	}
	return nil, fmt.Errorf("snapshot %s: %w", id, ErrNoSnapshot)
}

// snapshotOf is what the record and the volume's layers say together.
func (p *Pool) snapshotOf(r *snapshotRecord, v *record) Snapshot {
	s := Snapshot{ID: r.ID, Name: r.name(), Pool: p.name, Volume: r.Volume, Group: r.Group}
	if v == nil {
		return s
	}
	if l, ok := v.snapshot(r.ID); ok {
		s.Taken = r.Group == "" || p.groupTaken(r.Group)
		s.Size, s.Bytes, s.Created, s.Consistency = l.Size, l.Bytes, l.Created, l.Consistency
		s.Image = path.Join(p.tree.Name(), imagePath(l.Image))
	}
	return s
}

// snapshotLock is the lock of a snapshot's name.
func snapshotLock(h hash) int64 { return hashOf("snapshot " + h.String()).lock() }

// ReserveSnapshot returns the snapshot of that name, taken or not. One that is
// not has to be [Set.Cut]. ErrNotFound, ErrConflict, ErrInvalid, ErrNotWritable.
func (s *Set) ReserveSnapshot(ctx context.Context, spec SnapshotSpec) (Snapshot, error) {
	if spec.Name == "" || len(spec.Name) > MaxName {
		return Snapshot{}, fmt.Errorf("snapshot name of %d bytes: %w: 1 to %d", len(spec.Name), ErrInvalid, MaxName)
	}
	p, v, err := s.of(spec.Volume)
	if err != nil {
		return Snapshot{}, err
	}
	snap, err := p.reserveSnapshot(ctx, v, spec)
	return snap, p.notWritable(err)
}

func (p *Pool) reserveSnapshot(ctx context.Context, v volumeID, spec SnapshotSpec) (Snapshot, error) {
	dir := dirSnapshots
	if spec.Passing {
		dir = dirCuts
	}
	h := hashOf(spec.Name)
	l, err := p.newSession(h, func(s *session) error { return s.take(ctx, snapshotLock(h)) })
	if err != nil {
		return Snapshot{}, err
	}
	defer l.close()
	r, err := p.readSnapshot(dir, h)
	switch {
	case err == nil && (r.name() != spec.Name || r.Volume != spec.Volume || r.Group != spec.Group):
		return Snapshot{}, fmt.Errorf("snapshot %q: %w: it is of volume %s", spec.Name, ErrConflict, r.Volume)
	case err == nil:
		vol, err := p.lineage(v)
		if err != nil {
			return Snapshot{}, err
		}
		return p.snapshotOf(r, vol), p.tree.SyncDir(path.Dir(r.path()))
	case !errors.Is(err, fs.ErrNotExist):
		return Snapshot{}, err
	}
	if _, err := p.live(v); err != nil {
		return Snapshot{}, err
	}
	r = newSnapshot(p, dir, spec)
	b, err := encodeObject(&r.snapshotStored, nil)
	if err != nil {
		return Snapshot{}, err
	}
	if err := p.tree.Mkdir(path.Dir(r.path())); err != nil {
		return Snapshot{}, err
	}
	if err := p.tree.LinkOnce(r.path(), b); err != nil {
		return Snapshot{}, err
	}
	return p.snapshotOf(r, nil), nil
}

func newSnapshot(p *Pool, dir string, spec SnapshotSpec) *snapshotRecord {
	id := volumeID{pool: p.name, hash: hashOf(spec.Name), inc: newIncarnation()}
	r := &snapshotRecord{id: id, dir: dir, snapshotStored: snapshotStored{
		ID: id.String(), Volume: spec.Volume, Group: spec.Group, Reserved: time.Now().UTC().Truncate(time.Millisecond),
	}}
	if utf8.ValidString(spec.Name) {
		r.Name = spec.Name
	} else {
		r.NameBytes = []byte(spec.Name)
	}
	return r
}

// Snapshot returns a snapshot, taken or not. ErrNoSnapshot.
func (s *Set) Snapshot(_ context.Context, id string) (Snapshot, error) {
	p, sid, err := s.ofSnapshot(id)
	if err != nil {
		return Snapshot{}, err
	}
	r, err := p.findSnapshot(sid)
	if err != nil {
		return Snapshot{}, err
	}
	v, err := p.volumeOf(r)
	return p.snapshotOf(r, v), err
}

// volumeOf is the record whose layers hold the snapshot, which may be one that is
// being deleted; nil if there is none.
func (p *Pool) volumeOf(r *snapshotRecord) (*record, error) {
	id, err := parseID(r.Volume)
	if err != nil {
		return nil, err
	}
	v, err := p.layered(id)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	return v, err
}

// ofSnapshot finds the pool of a snapshot's id.
func (s *Set) ofSnapshot(id string) (*Pool, volumeID, error) {
	v, err := parseID(id)
	if err != nil {
		return nil, v, fmt.Errorf("snapshot %.128q: %w", id, ErrNoSnapshot)
	}
	p, err := s.Pool(v.pool)
	if errors.Is(err, ErrNoPool) {
		err = fmt.Errorf("%w: its pool is not served here; there are %s", ErrNoSnapshot, s.list())
	}
	if err != nil {
		return nil, v, fmt.Errorf("snapshot %s: %w", id, err)
	}
	return p, v, nil
}

// DeleteSnapshot takes a snapshot away. What it alone has kept is freed, at once
// or by [Set.Tend]. Unknown ids are success, but for that of a pool that is not
// served here. ErrBusy.
func (s *Set) DeleteSnapshot(ctx context.Context, id string) error {
	sid, err := parseID(id)
	if err != nil {
		return nil //nolint:nilerr // a snapshot that cannot be is as gone as it gets
	}
	p, err := s.Pool(sid.pool)
	if err != nil {
		return fmt.Errorf("delete snapshot %s: %w", id, err)
	}
	if err := p.deleteSnapshot(ctx, sid, false); err != nil {
		return fmt.Errorf("delete snapshot %s: %w", id, p.notWritable(err))
	}
	return nil
}

// deleteSnapshot: layer without the snapshot's id -> snapshot's record removed.
// A death between leaves the name reserved and nothing taken; it is deleted, or
// cut again, as any other.
//
// With abandoned it goes only if nobody will come back for it.
func (p *Pool) deleteSnapshot(ctx context.Context, id volumeID, abandoned bool) error {
	l, err := p.newSession(id.hash, func(s *session) error { return s.take(ctx, snapshotLock(id.hash)) })
	if err != nil {
		return err
	}
	defer l.close()
	r, err := p.findSnapshot(id)
	if errors.Is(err, ErrNoSnapshot) {
		return nil
	}
	if err != nil {
		return err
	}
	vid, err := parseID(r.Volume)
	if err != nil {
		return err
	}
	s, err := p.lockVolume(ctx, vid.hash)
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.finish(ctx); err != nil {
		return err
	}
	v, err := p.volumeOf(r)
	if err != nil {
		return err
	}
	if v != nil && v.Deleting {
		return fmt.Errorf("volume %s: %w: it is being deleted", vid, ErrBusy)
	}
	if abandoned && !p.abandoned(r, v) {
		return nil
	}
	if v != nil {
		for i := range v.Layers {
			if v.Layers[i].Snapshot == r.ID {
				v.Layers[i].Snapshot = ""
				if err := p.replaceRecord(v); err != nil {
					return err
				}
			}
		}
	}
	return p.tree.Remove(r.path())
}

// abandoned reports whether nobody will come back for a snapshot: it is old, and
// exists for the sake of a clone or has never been taken.
func (p *Pool) abandoned(r *snapshotRecord, v *record) bool {
	if time.Since(r.Reserved) < abandonedAge || r.Group != "" {
		return false
	}
	cut := false
	if v != nil {
		_, cut = v.snapshot(r.ID)
	}
	return r.dir == dirCuts || !cut
}
