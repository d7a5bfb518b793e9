package pool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/fsx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool/lease"
)

// deleteVolume removes a volume, durably at each step:
//
//	begin (account: deletion; record: deleting) -> image removed, directory
//	synced -> commit (record removed, directory synced; account)
//
// The volume is gone when its record says deleting. Whatever dies after that
// is resumed: by a repeated call, by a creation of the same name, or by Collect.
func (p *Pool) deleteVolume(ctx context.Context, id volumeID) error {
	s, err := p.lockVolume(ctx, id.hash)
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.finish(ctx); err != nil {
		return err
	}
	r, err := p.readRecord(id.hash)
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && r.id != id:
		return nil
	case err != nil:
		return err
	case !r.Deleting && len(r.Attachments) > 0:
		return fmt.Errorf("delete volume %s: %w: attached to node %s", id, ErrInUse, r.Attachments[0].Node)
	}
	return s.delete(ctx, r)
}

// finish resolves what a dead operation on the volume has left. That is all
// there is to do for a volume that does not exist.
func (s *session) finish(ctx context.Context) error {
	a, err := s.p.readAccount()
	if errors.Is(err, errNoAccount) {
		return nil
	}
	if err != nil {
		return err
	}
	dead := a.of(s.hash)
	if len(dead) == 0 {
		return nil
	}
	if err := s.enter(ctx); err != nil {
		return err
	}
	return s.resolveAll(ctx, dead)
}

func (s *session) delete(ctx context.Context, r *record) error {
	// Held until the image is gone, so that nobody opens it meanwhile.
	image, err := s.p.claimImage(r.Image)
	if err != nil {
		return s.p.heldError("delete", r, err)
	}
	defer closeFile(image)
	o, err := s.p.deletion(r)
	if err != nil {
		return fmt.Errorf("delete volume %s: %w", r.ID, err)
	}
	err = s.begin(ctx, o, func() error {
		if r.Deleting {
			return nil
		}
		r.Deleting = true
		return s.p.replaceRecord(r)
	})
	if err != nil {
		return fmt.Errorf("delete volume %s: %w", r.ID, err)
	}
	err = s.remove(context.WithoutCancel(ctx), r, o)
	s.p.takeBallast()
	return err
}

// remove is the second phase. The caller has the volume's and the image's locks.
func (s *session) remove(ctx context.Context, r *record, o *operation) error {
	err := s.p.removeImage(r.Image)
	if err == nil {
		err = s.bury(ctx, r, o)
	}
	if errors.Is(err, errSuperseded) || errors.Is(err, errNoAccount) || errors.Is(err, lease.ErrHeld) {
		err = fmt.Errorf("%w: %w", ErrBusy, err)
	}
	if err != nil {
		return fmt.Errorf("delete volume %s: %w", r.ID, err)
	}
	return nil
}

// unlinkRecord removes a record, if it still is that of this incarnation.
func (p *Pool) unlinkRecord(r *record) error {
	cur, err := p.readRecord(r.id.hash)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if cur.id != r.id || !cur.Deleting {
		return errSuperseded
	}
	return p.tree.Remove(p.recordPath(r.id.hash))
}

// claimImage opens and locks an image that is to be removed. nil: there is none.
func (p *Pool) claimImage(image string) (*os.File, error) {
	f, err := p.tree.Open(imagePath(image), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if errors.Is(err, fsx.ErrForeign) {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err != nil {
		return nil, err
	}
	if err := p.leases.Claim(image, f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// heldError says ErrInUse, and who, where a lease says held; ErrBusy where
// waiting helps.
func (p *Pool) heldError(op string, r *record, err error) error {
	if h, ok := errors.AsType[*lease.HeldError](err); ok {
		if h.Draining {
			return fmt.Errorf("%s volume %s: %w: %w", op, r.ID, ErrBusy, err)
		}
		return fmt.Errorf("%s volume %s: %w: open by %v", op, r.ID, ErrInUse, h.Holder)
	}
	return fmt.Errorf("%s volume %s: %w", op, r.ID, err)
}

func closeFile(f *os.File) {
	if f != nil {
		f.Close()
	}
}
