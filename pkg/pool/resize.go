package pool

import (
	"context"
	"errors"
	"fmt"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// resize records the size and then makes the image follow:
//
//	begin (account: growth) -> commit (record replaced; account) -> image grown
//
// The record comes first, so that the holder of an open image, or whoever
// opens it next, knows what it has to be.
func (p *Pool) resize(ctx context.Context, id volumeID, size int64) (Volume, error) {
	s, err := p.lockVolume(ctx, id.hash)
	if err != nil {
		return Volume{}, err
	}
	defer s.close()
	if err := s.finish(ctx); err != nil {
		return Volume{}, err
	}
	r, err := p.live(id)
	if err == nil {
		r, err = s.relink(ctx, r, nil)
	}
	if err != nil {
		return Volume{}, err
	}
	if size <= 0 || size > maxSize {
		return Volume{}, fmt.Errorf("resize volume %s to %d: %w: largest is %d", id, size, ErrOutOfRange, int64(maxSize))
	}
	if size = roundUp(size, r.Params.sector()); size > r.Size {
		if err := s.recordSize(ctx, r, size); err != nil {
			return Volume{}, fmt.Errorf("resize volume %s: %w", id, err)
		}
	}
	if err := p.growImage(ctx, id, r.Size); err != nil {
		return Volume{}, fmt.Errorf("resize volume %s: %w", id, err)
	}
	return p.volume(r), nil
}

// recordSize changes the record and the account, and r with them.
func (s *session) recordSize(ctx context.Context, r *record, size int64) error {
	rest := r.frozenBytes()
	after := max(r.headFootprint(size), r.Committed-rest) + rest
	o := s.p.newOperation(opGrow, r, after-r.Committed)
	o.Committed = after
	if err := s.begin(ctx, o, nil); err != nil {
		return s.p.full(err, o.Bytes)
	}
	ctx = context.WithoutCancel(ctx)
	grown := *r
	grown.Size, grown.Committed = size, after
	err := s.commit(ctx, o, func() error { return s.p.replaceRecord(&grown) })
	if err != nil {
		if errors.Is(err, errSuperseded) || errors.Is(err, errNoAccount) {
			err = fmt.Errorf("%w: %w", ErrBusy, err)
		}
		return errors.Join(s.p.full(err, o.Bytes), s.resolve(ctx, o))
	}
	*r = grown
	return nil
}

// growImage grows the image unless somebody has it open: its holder, or the
// next one, looks at the record.
func (p *Pool) growImage(ctx context.Context, id volumeID, size int64) error {
	im, err := p.openImage(ctx, id, false, vhdx.OpenOptions{})
	if errors.Is(err, ErrInUse) {
		return nil
	}
	if err != nil {
		return err
	}
	if now := im.Size(); now < size {
		err = p.full(im.Grow(size), size-now) //nolint:contextcheck // what it does is short, or may not be cut short
	}
	return errors.Join(err, im.Close())
}
