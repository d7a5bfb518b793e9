package pool

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"time"
)

// update changes the record of a live volume under the volume's lock. change
// returns errSame to leave it.
func (p *Pool) update(ctx context.Context, id volumeID, change func(*record) error) error {
	s, err := p.lockVolume(ctx, id.hash)
	if err != nil {
		return err
	}
	defer s.close()
	r, err := p.live(id)
	if err != nil {
		return err
	}
	switch err := change(r); {
	case errors.Is(err, errSame):
		// It may have been written by a process that died before it synced.
		return p.tree.SyncDir(path.Dir(p.recordPath(id.hash)))
	case err != nil:
		return err
	}
	if err := s.fresh(); err != nil {
		return err
	}
	return p.replaceRecord(r)
}

// errSame: the record already says so.
var errSame = errors.New("nothing to change")

func (p *Pool) attach(ctx context.Context, id volumeID, node string, readOnly bool) error {
	return p.update(ctx, id, func(r *record) error {
		if len(r.Attachments) > 0 { // one at most, in this version
			switch a := r.Attachments[0]; {
			case a.Node != node:
				return &AttachedError{Volume: r.ID, Node: a.Node}
			case a.ReadOnly != readOnly:
				return fmt.Errorf("volume %s: %w: read-only is %v", r.ID, ErrIncompatible, a.ReadOnly)
			}
			return errSame
		}
		r.Attachments = append(r.Attachments, Attachment{
			Node: node, ReadOnly: readOnly, Since: time.Now().UTC().Truncate(time.Second),
		})
		return nil
	})
}

func (p *Pool) detach(ctx context.Context, id volumeID, node string) error {
	err := p.update(ctx, id, func(r *record) error {
		concerned := func(a Attachment) bool { return node == "" || a.Node == node }
		if !slices.ContainsFunc(r.Attachments, concerned) {
			return errSame
		}
		// A lock is proof that some node can still write. Which one, only the
		// holder's own note says, so no lock at all may be there.
		image, err := p.claimImage(r.Image)
		if err != nil {
			return p.heldError("detach", r, err)
		}
		closeFile(image)
		r.Attachments = slices.DeleteFunc(r.Attachments, concerned)
		return nil
	})
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

func (p *Pool) setUse(ctx context.Context, id volumeID, u Use, fsType string) error {
	if !u.valid() || len(fsType) > maxFSType {
		return fmt.Errorf("volume %s: %w: use %.32q, filesystem %.64q", id, ErrInvalid, u, fsType)
	}
	return p.update(ctx, id, func(r *record) error {
		if r.Use == UseMounted && u != UseMounted {
			return fmt.Errorf("volume %s: %w: it has been mounted and may hold data; it cannot become %q again", id, ErrInvalid, u)
		}
		if r.Use == u && (fsType == "" || fsType == r.FSType) {
			return errSame
		}
		r.Use = u
		if fsType != "" {
			r.FSType = fsType
		}
		return nil
	})
}
