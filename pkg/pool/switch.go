package pool

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// Switch puts a volume on its rebuilt layers. Whoever has it open gives its
// image; with nil nobody may have it open. Nothing to do is success. ErrInUse.
func (s *Set) Switch(ctx context.Context, id string, im *vhdx.Image) error {
	p, v, err := s.of(id)
	if err != nil {
		return err
	}
	if err := p.doSwitch(ctx, v, im); err != nil {
		return fmt.Errorf("put volume %s on its rebuilt layers: %w", id, p.notWritable(err))
	}
	return nil
}

func (p *Pool) doSwitch(ctx context.Context, id volumeID, im *vhdx.Image) (err error) {
	s, err := p.lockVolume(ctx, id.hash)
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.finish(ctx); err != nil {
		return err
	}
	r, err := p.live(id)
	if err != nil {
		return err
	}
	if !r.switchable() {
		return nil
	}
	if im == nil {
		l, err := p.offline(ctx, id)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, l.Image.Close()) }()
		im = l.Image
	}
	if len(r.Layers) == 0 {
		_, err := s.cut(ctx, r, "", Live{Image: im})
		return err
	}
	if !r.Rebuild.Switching {
		again := *r.Rebuild
		again.Switching = true
		r.Rebuild = &again
		if err := s.replaceFresh(r); err != nil {
			return err
		}
	}
	_, err = s.finishSwitch(ctx, r, im)
	return err
}

// switchable reports whether [Set.Switch] has something to do: the new images
// are complete, or there is a layer to be made for them first.
func (r *record) switchable() bool {
	b := r.Rebuild
	switch {
	case b == nil:
		return false
	case b.Switching || len(r.Layers) == 0:
		return true
	}
	return b.covered() == len(r.Layers) && b.New[len(b.New)-1].Done
}

func (s *session) replaceFresh(r *record) error {
	if err := s.fresh(); err != nil {
		return err
	}
	return s.p.replaceRecord(r)
}

// finishSwitch ends a switch that has begun. Everything that changes what a
// volume stands on ends it first.
func (s *session) finishSwitch(_ context.Context, r *record, im *vhdx.Image) (*record, error) {
	b := r.Rebuild
	if b == nil || !b.Switching {
		return r, nil
	}
	if !r.isHead(im) {
		return nil, fmt.Errorf("volume %s: %w: its image is %s, and not %s, which is open", r.ID, ErrBusy, r.Image, im.Info().File)
	}
	top := b.New[len(b.New)-1].Image
	err := im.ReplaceParent(vhdx.ParentChange{ //nolint:contextcheck // what it does is short, or may not be cut short
		Path: path.Join(s.p.tree.Name(), imagePath(top)), RelativePath: parentPath(top),
	})
	if err != nil {
		return nil, err
	}
	next := *r
	next.Old = append(slices.Clone(r.Layers[b.From:]), r.Old...)
	next.Layers = slices.Clone(r.Layers[:b.From])
	for _, n := range b.New {
		l := r.Layers[n.To]
		l.Image, l.Bytes = n.Image, n.Bytes
		next.Layers = append(next.Layers, l)
	}
	for i := range next.Old {
		next.Old[i].Snapshot = ""
	}
	if b.Flat && r.Origin != nil {
		o := *r.Origin
		o.Depth = 0
		next.Origin = &o
	}
	next.Rebuild = nil
	return &next, s.replaceFresh(&next)
}
