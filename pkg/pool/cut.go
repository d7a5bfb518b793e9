package pool

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool/lease"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// Live is a volume's image as its holder has it open.
type Live struct {
	Image *vhdx.Image
	// Around runs cut, with the filesystem frozen if that is what it does; like,
	// which is called while writes wait, says what the disk is like, or why it is
	// not to be cut. Nil: cut is run, and is like a power cut.
	Around func(cut func(like Likeness) error) error
}

// Likeness says what a disk is like while its writes wait.
type Likeness func() (Consistency, error)

// Always is the Likeness of a disk that does not change it.
func Always(c Consistency) Likeness { return func() (Consistency, error) { return c, nil } }

// Cut takes a snapshot that is reserved: the image that the volume has becomes
// the snapshot, and a new child of it the volume's image. Whoever has the volume
// open gives its image; with the zero Live nobody may have it open. Order:
//
//	begin (room reserved, child named) -> child complete, synced
//	-> writes wait, image clean -> record: new image, old one a layer -> writes go on
//	-> account
//
// A death before the record leaves no snapshot, one after it the snapshot
// (I-POOL-15). One that is taken already is success.
// ErrNoSnapshot, ErrNotFound, ErrInUse, ErrBusy, ErrNoSpace, ErrChainFull.
func (s *Set) Cut(ctx context.Context, snapshot string, l Live) (Snapshot, error) {
	p, id, err := s.ofSnapshot(snapshot)
	if err != nil {
		return Snapshot{}, err
	}
	snap, err := p.cutSnapshot(ctx, id, l)
	if err != nil {
		return Snapshot{}, fmt.Errorf("take snapshot %s: %w", snapshot, p.notWritable(err))
	}
	return snap, nil
}

func (p *Pool) cutSnapshot(ctx context.Context, id volumeID, l Live) (Snapshot, error) {
	snap, err := p.findSnapshot(id)
	if err != nil {
		return Snapshot{}, err
	}
	vid, err := parseID(snap.Volume)
	if err != nil {
		return Snapshot{}, err
	}
	s, err := p.lockVolume(ctx, vid.hash)
	if err != nil {
		return Snapshot{}, err
	}
	defer s.close()
	if snap, err = p.findSnapshot(id); err != nil { // again: it may have been deleted
		return Snapshot{}, err
	}
	if err := s.finish(ctx); err != nil {
		return Snapshot{}, err
	}
	r, err := p.live(vid)
	if err != nil {
		return Snapshot{}, err
	}
	if _, taken := r.snapshot(snap.ID); taken {
		return p.snapshotOf(snap, r), p.tree.SyncDir(path.Dir(p.pathOf(r)))
	}
	if r, err = s.cut(ctx, r, snap.ID, l); err != nil {
		return Snapshot{}, err
	}
	return p.snapshotOf(snap, r), nil
}

// cut freezes the volume's image under the name of a snapshot, "" for none, and
// returns the record as it is then.
func (s *session) cut(ctx context.Context, r *record, snapshot string, l Live) (_ *record, err error) {
	if r, err = s.relink(ctx, r, nil); err != nil {
		return nil, err
	}
	// Who reads an image that a snapshot was made of goes on with that one.
	if l.Image == nil || l.Image.ReadOnly() && !r.isHead(l.Image) {
		if l, err = s.p.offline(ctx, r.id); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, l.Image.Close()) }()
	}
	if r, err = s.finishSwitch(ctx, r, l.Image); err != nil {
		return nil, err
	}
	switch {
	case !r.isHead(l.Image):
		return nil, fmt.Errorf("volume %s: %w: its image is %s, and not %s, which is open", r.ID, ErrBusy, r.Image, l.Image.Info().File)
	case len(r.Layers) >= maxLayers || r.depth() >= maxDepth:
		return nil, fmt.Errorf("volume %s: %w: %d images; delete snapshots, the rest is done in the background", r.ID, ErrChainFull, r.depth())
	}
	c := &cutting{s: s, r: r, snapshot: snapshot, live: l}
	c.old, c.next = r.Image, uuid.NewString()
	bytes, err := s.p.allocated(c.old)
	if err != nil {
		return nil, err
	}
	o := s.p.newOperation(opChange, r, bytes+cutSlack+bitmapBytes(r.Size))
	o.Image, o.Before, o.Fixed = c.next, r.Committed, false
	if err := s.begin(ctx, o, nil); err != nil {
		return nil, s.p.full(err, o.Bytes)
	}
	c.room = o.Bytes
	err = c.run(context.WithoutCancel(ctx))
	if c.done {
		// The account is set right by whoever comes next, if not now.
		s.commitChange(context.WithoutCancel(ctx), o, c.r) //nolint:errcheck // see above
		return c.r, err
	}
	if rerr := s.resolve(context.WithoutCancel(ctx), o); rerr != nil {
		err = fmt.Errorf("%w: %w; undo: %w", ErrBusy, err, rerr)
	}
	return nil, s.p.full(err, o.Bytes)
}

// isHead reports whether an open image is the one that the volume is written to.
func (r *record) isHead(im *vhdx.Image) bool {
	return path.Base(im.Info().File) == path.Base(imagePath(r.Image))
}

// cutSlack is by how much an image may grow while its snapshot is prepared.
const cutSlack = 256 * mib

// offline opens an image that nobody has open, for a moment.
func (p *Pool) offline(ctx context.Context, id volumeID) (Live, error) {
	im, err := p.openImage(ctx, id, false, vhdx.OpenOptions{})
	if err != nil {
		return Live{}, err
	}
	like := ConsistentFilesystem // whoever had it last has closed it
	if im.Info().Replay.Entries > 0 {
		like = ConsistentCrash
	}
	return Live{Image: im, Around: func(cut func(Likeness) error) error { return cut(Always(like)) }}, nil
}

// cutting is one cut.
type cutting struct {
	s         *session
	r         *record // replaced when it is done
	snapshot  string
	live      Live
	old, next string
	room      int64 // reserved in the account
	done      bool  // the record says so
}

func (c *cutting) run(ctx context.Context) error {
	f, err := c.s.p.buildChild(ctx, c.next, c.live.Image, vhdx.ChildOptions{
		BlockSize: c.r.Params.BlockSize, LogSize: c.r.Params.LogSize, RelativePath: parentPath(c.old),
	})
	if err != nil {
		return err
	}
	around := c.live.Around
	if around == nil {
		around = func(cut func(Likeness) error) error { return cut(Always(ConsistentCrash)) }
	}
	called := false
	err = around(func(like Likeness) error {
		called = true
		if c.live.Image.ReadOnly() { // nothing changes, and who reads it goes on
			return errors.Join(f.Close(), c.record(like))
		}
		return c.live.Image.Rotate(f, func() error { return c.record(like) })
	})
	if !called {
		err = errors.Join(err, f.Close())
	}
	if c.done && err != nil {
		return fmt.Errorf("it is taken, but: %w", err)
	}
	return err
}

// record is what the pause waits for.
func (c *cutting) record(like Likeness) error {
	bytes, err := c.s.p.allocated(c.old)
	if err != nil {
		return err
	}
	consistency, err := like()
	if err != nil {
		return err
	}
	next := *c.r
	next.Layers = append(slices.Clone(c.r.Layers), layer{
		Image: c.old, Snapshot: c.snapshot, Size: c.live.Image.Size(), Bytes: bytes, Use: c.r.Use, FSType: c.r.FSType,
		Consistency: consistency, Created: time.Now().UTC().Truncate(time.Millisecond),
	})
	next.Image = c.next
	next.Committed = next.frozenBytes() + max(next.headFootprint(c.r.Size), c.r.Committed-c.r.frozenBytes())
	if grown := next.Committed - c.r.Committed; grown > c.room {
		return fmt.Errorf("volume %s: %w: it grew by %d bytes while its snapshot was prepared; try again", c.r.ID, ErrBusy, grown-c.room+cutSlack)
	}
	if err := c.s.fresh(); err != nil {
		return err
	}
	if err := c.s.p.replaceRecord(&next); err != nil {
		switch says, rerr := c.s.p.says(&next); {
		case rerr != nil:
			return fmt.Errorf("%w: %w: %w", vhdx.ErrUndecided, err, rerr)
		case !says:
			return err
		}
		// Whether it is durable is not known. The way back is not known to be
		// either: the old record is put back, or else what is there counts.
		back := *c.r
		back.Revision = next.Revision
		if c.s.p.replaceRecord(&back) == nil {
			return err
		}
		if c.s.p.tree.SyncDir(path.Dir(c.s.p.pathOf(&next))) != nil {
			return fmt.Errorf("%w: %w", vhdx.ErrUndecided, err)
		}
	}
	c.r, c.done = &next, true
	return nil
}

// says reports whether the record on the share is this one.
func (p *Pool) says(r *record) (bool, error) {
	cur, err := p.readRecord(r.id.hash)
	return err == nil && cur.id == r.id && cur.Revision == r.Revision && cur.Image == r.Image, err
}

// commitChange ends a change whose record is written.
func (s *session) commitChange(ctx context.Context, o *operation, r *record) error {
	return s.commitAny(ctx, o, func(a *account) error {
		a.settleChange(o, r)
		return nil
	})
}

// buildChild makes a child of an open image, complete and durable, and returns
// its file, leased to this process.
func (p *Pool) buildChild(ctx context.Context, image string, parent *vhdx.Image, o vhdx.ChildOptions) (vhdx.File, error) {
	f, err := p.newImageFile(image)
	if err != nil {
		return nil, err
	}
	l, err := p.leases.Acquire(ctx, image, f, lease.Exclusive)
	if err != nil {
		f.Close()
		return nil, err
	}
	osf, err := vhdx.NewOSFile(f, vhdx.FileOptions{NoLock: true})
	if err != nil {
		l.Release() //nolint:errcheck // closing f ends it anyway
		f.Close()
		return nil, err
	}
	if _, err = parent.CreateChildOn(p.stepped(osf), o); err == nil {
		err = p.tree.SyncDir(path.Dir(imagePath(image)))
	}
	child := &leased{OSFile: osf, lease: l}
	if err != nil {
		child.Close()
		if errors.Is(err, vhdx.ErrInvalid) {
			err = fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		return nil, fmt.Errorf("build image %s: %w", imagePath(image), err)
	}
	return child, nil
}
