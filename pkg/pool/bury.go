package pool

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"slices"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool/lease"
)

// deletion is the operation that deletes a volume: what leaves the account is
// all but the layers that are needed yet.
func (p *Pool) deletion(r *record) (*operation, error) {
	needed, err := p.needed(r)
	if err != nil {
		return nil, err
	}
	bytes := r.Committed
	for _, l := range needed {
		bytes -= l.Bytes
	}
	o := p.newOperation(opDelete, r, max(bytes, 0))
	o.Before = r.Committed
	return o, nil
}

// needed are the layers that somebody needs who is not the volume itself: those
// that are snapshots or have children in other volumes, and all below them.
func (p *Pool) needed(r *record) ([]layer, error) {
	for i, l := range slices.Backward(r.Layers) {
		used := l.Snapshot != ""
		if !used {
			var err error
			if used, err = p.hasChildren(l.Image); err != nil {
				return nil, err
			}
		}
		if used {
			return r.Layers[:i+1], nil
		}
	}
	return nil, nil
}

// bury is the end of a deletion, with the volume's image gone: the layers that
// nobody needs go, top down, and then the record, or where layers are needed yet
// it retires.
func (s *session) bury(ctx context.Context, r *record, o *operation) error {
	needed, err := s.p.needed(r)
	if err != nil {
		return err
	}
	if r.Rebuild != nil {
		for _, n := range slices.Backward(r.Rebuild.New) {
			if err := s.removeFrozen(n.Image); err != nil {
				return err
			}
		}
	}
	kept, err := s.removeOld(r.Old)
	if err != nil && !errors.Is(err, lease.ErrHeld) {
		return err
	}
	if len(kept) > 0 {
		needed = r.Layers // they stand on those
	}
	for _, l := range slices.Backward(r.Layers[len(needed):]) {
		if err := s.removeFrozen(l.Image); err != nil {
			return err
		}
	}
	if len(needed)+len(kept) == 0 {
		if r.Origin != nil {
			if err := s.p.disclaim(r.Origin.Image, r.Origin.As); err != nil {
				return err
			}
		}
		return s.commit(ctx, o, func() error {
			o.Bytes = r.Committed
			return s.p.unlinkRecord(r)
		})
	}
	after := *r
	after.Deleting, after.Retired, after.Image, after.Attachments, after.Rebuild, after.Import = false, true, "", nil, nil, nil
	after.Layers, after.Old = needed, kept
	after.Committed = after.frozenBytes()
	return s.commit(ctx, o, func() error {
		if err := s.p.tree.Mkdir(path.Dir(retiredPath(r.id))); err != nil {
			return err
		}
		if err := s.p.replaceRecord(&after); err != nil {
			return err
		}
		o.Bytes = r.Committed - after.Committed
		return s.p.unlinkRecord(r)
	})
}

// removeFrozen removes a layer that nobody needs. A [lease.HeldError] where
// somebody reads it.
func (s *session) removeFrozen(image string) error {
	f, err := s.p.claimImage(image)
	if err != nil {
		return err
	}
	defer closeFile(f)
	if err := s.fresh(); err != nil {
		return err
	}
	if err := s.p.removeImage(image); err != nil {
		return err
	}
	s.p.forgetChildren(image)
	return nil
}

// removeOld removes, top down, what a rebuild has replaced, up to the first
// that somebody still uses, and returns what is left.
func (s *session) removeOld(old []layer) ([]layer, error) {
	for len(old) > 0 {
		top := old[len(old)-1]
		used, err := s.p.hasChildren(top.Image)
		if err != nil || used {
			return old, err
		}
		if err := s.removeFrozen(top.Image); err != nil {
			return old, err
		}
		old = old[:len(old)-1]
	}
	return old, nil
}

// idle is an image of the record that nobody needs and that is nobody's parent;
// "": there is none.
func (p *Pool) idle(r *record) (string, error) {
	stack := r.Old // on top of the layers, those replaced first on top of the others
	if len(stack) == 0 && r.Retired {
		stack = r.Layers
	}
	if len(stack) == 0 {
		return "", nil
	}
	top := stack[len(stack)-1]
	if needed, err := p.isNeeded(top); err != nil || needed {
		return "", err
	}
	return top.Image, nil
}

// dropFrozen: begin -> file removed -> record without it -> account. Whoever
// finds the record with an image that is gone goes on from there.
func (s *session) dropFrozen(ctx context.Context, r *record, image string) (int64, error) {
	f, err := s.p.claimImage(image)
	if err != nil {
		return 0, err
	}
	closeFile(f)
	o := s.p.newOperation(opChange, r, 0)
	o.Image, o.Before, o.Drop = image, r.Committed, true
	if err := s.begin(ctx, o, nil); err != nil {
		return 0, err
	}
	ctx = context.WithoutCancel(ctx)
	if err := s.removeFrozen(image); err != nil {
		return 0, errors.Join(err, s.resolve(ctx, o))
	}
	before := r.Committed
	r.without(image)
	if err := s.fresh(); err != nil {
		return 0, err
	}
	if err := s.p.replaceRecord(r); err != nil {
		return 0, err
	}
	return before - r.Committed, s.commitChange(ctx, o, r)
}

// without takes an image out of the record's layers.
func (r *record) without(image string) {
	drop := func(all []layer) []layer {
		return slices.DeleteFunc(slices.Clone(all), func(l layer) bool {
			if l.Image == image {
				r.Committed -= l.Bytes
			}
			return l.Image == image
		})
	}
	r.Layers, r.Old = drop(r.Layers), drop(r.Old)
}

// letOrigin ends what the volume has with another one's layer, when it stands
// there no more and none of its old images does.
func (s *session) letOrigin(r *record, t *Tended) error {
	if r.Retired || r.Origin == nil || r.Origin.Depth > 0 || len(r.Old) > 0 || r.Rebuild != nil {
		return nil
	}
	// First, for a record without it would leave the announcement for ever.
	if err := s.p.disclaim(r.Origin.Image, r.Origin.As); err != nil {
		return err
	}
	t.Left = r.Origin.Volume
	r.Origin = nil
	return s.replaceFresh(r)
}

// unretire removes the record of a deleted volume that has no layer left.
func (s *session) unretire(r *record, t *Tended) error {
	if !r.Retired || len(r.Layers)+len(r.Old) > 0 {
		return nil
	}
	if r.Origin != nil {
		if err := s.p.disclaim(r.Origin.Image, r.Origin.As); err != nil {
			return err
		}
		t.Left = r.Origin.Volume
	}
	if err := s.fresh(); err != nil {
		return err
	}
	err := s.p.tree.Remove(retiredPath(r.id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
