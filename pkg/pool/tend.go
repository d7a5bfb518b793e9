package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool/lease"
)

// Tended says what Tend did.
type Tended struct {
	Removed int   // images
	Freed   int64 // bytes that they took
	Rebuilt int   // images that layers were merged into
	// Left is the id of a volume on which this one stands no more, and which may
	// have something to free because of that; "": of none.
	Left string
}

// Tender is how [Set.Tend] works.
type Tender struct {
	// Progress, if set, is told how far the merging of layers has come, in bytes
	// of the disk. It may wait, to leave the share to others; its error ends the
	// work, which goes on where it was the next time.
	Progress func(volume string, done, total int64) error
	// Follow, if set, asks whoever has a volume open to [Set.Switch] it.
	Follow func(ctx context.Context, volume string) error
}

// Tend frees what nobody needs any more of a volume's frozen images, and merges
// layers where that is worth it. What somebody reads is left for the next time.
// ErrAway, ErrBusy, ErrNoSpace.
func (s *Set) Tend(ctx context.Context, id string, how Tender) (Tended, error) {
	p, v, err := s.of(id)
	if err != nil {
		return Tended{}, err
	}
	t, err := p.tend(ctx, v)
	if err != nil {
		return t, err
	}
	progress := func(done, total int64) error {
		if how.Progress == nil {
			return ctx.Err()
		}
		return errors.Join(ctx.Err(), how.Progress(id, done, total))
	}
	more, ready := true, false
	for more {
		if more, ready, err = p.rebuildStep(ctx, v, progress); err != nil {
			return t, err
		}
		if more {
			t.Rebuilt++
		}
	}
	if !ready {
		return t, nil
	}
	if err := s.Switch(ctx, id, nil); errors.Is(err, ErrInUse) && how.Follow != nil {
		err = how.Follow(ctx, id)
		if err != nil {
			return t, err
		}
	} else if err != nil {
		return t, err
	}
	last, err := p.tend(ctx, v)
	t.Removed += last.Removed
	t.Freed += last.Freed
	t.Left = cmp.Or(last.Left, t.Left)
	return t, err
}

// abandonedAge is how old a snapshot for a clone, or one that was never taken, is
// before nobody comes back for it.
const abandonedAge = 24 * time.Hour

// Untended calls fn for each volume that [Set.Tend] may have work on. It reads
// every record. Snapshots that nobody will come back for are deleted on the way.
func (s *Set) Untended(ctx context.Context, fn func(volume string) error) error {
	var errs []error
	for _, p := range s.Pools() {
		errs = append(errs, p.deleteAbandoned(ctx))
		errs = append(errs, p.eachLineage(ctx, func(_ string, r *record, err error) error {
			if damaged(err) {
				return nil // Problems names it
			}
			if err != nil || len(r.Layers)+len(r.Old) == 0 && !r.Retired && r.Origin == nil {
				return err
			}
			return fn(r.ID)
		}))
	}
	return errors.Join(errs...)
}

func (p *Pool) deleteAbandoned(ctx context.Context) (err error) {
	var old []volumeID
	for _, dir := range []string{dirCuts, dirSnapshots} {
		err = errors.Join(err, p.walk(ctx, dir, "", func(_ string, h hash, b []byte, err error) error {
			if err != nil {
				return nil //nolint:nilerr // Problems names it
			}
			if r, err := decodeSnapshot(b, p.name, dir, h); err == nil && time.Since(r.Reserved) > abandonedAge {
				old = append(old, r.id) // if it is, under the locks
			}
			return nil
		}))
	}
	for _, id := range old {
		err = errors.Join(err, p.deleteSnapshot(ctx, id, true))
	}
	return errors.Join(err, p.deleteAbandonedGroups(ctx))
}

func (p *Pool) deleteAbandonedGroups(ctx context.Context) error {
	var old []hash
	err := p.walk(ctx, dirGroups, "", func(_ string, h hash, b []byte, err error) error {
		if err != nil {
			return nil //nolint:nilerr // Problems names it
		}
		if r, err := decodeGroup(b, p.name, h); err == nil && r.Taken == nil && time.Since(r.Reserved) > abandonedAge {
			old = append(old, h)
		}
		return nil
	})
	for _, h := range old {
		l, lerr := p.lockGroup(ctx, h)
		if lerr != nil {
			err = errors.Join(err, lerr)
			continue
		}
		if r, rerr := p.readGroup(h); rerr == nil && r.Taken == nil && time.Since(r.Reserved) > abandonedAge {
			err = errors.Join(err, l.deleteGroup(ctx, r))
		}
		l.close()
	}
	return err
}

// tend removes what nobody needs and nothing stands on.
func (p *Pool) tend(ctx context.Context, id volumeID) (t Tended, err error) {
	s, err := p.lockVolume(ctx, id.hash)
	if err != nil {
		return t, err
	}
	defer s.close()
	if err := s.finish(ctx); err != nil {
		return t, err
	}
	r, err := p.lineage(id)
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrBusy) {
		return t, nil
	}
	for err == nil {
		var image string
		if image, err = p.idle(r); err != nil || image == "" {
			return t, errors.Join(err, s.letOrigin(r, &t), s.unretire(r, &t))
		}
		var freed int64
		freed, err = s.dropFrozen(ctx, r, image)
		switch {
		case errors.Is(err, lease.ErrHeld):
			return t, nil
		case err != nil:
			err = fmt.Errorf("volume %s: remove image %s: %w", id, image, err)
		default:
			t.Removed++
			t.Freed += freed
		}
	}
	return t, err
}
