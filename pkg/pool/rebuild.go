package pool

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"

	"github.com/google/uuid"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// A layer that is no snapshot any more is dead. A rebuild puts new images in
// the place of the upper layers, one for each layer that is needed, with the
// dead ones below merged in; the lower layers stay. Nothing that exists is
// changed but the link of the image that is written. Order:
//
//	record: rebuild begun -> for each new image: record names it, room reserved
//	-> filled, synced -> record: done -> ...
//	-> record: switching -> head's link, durably -> record: new layers, old ones
//	aside -> (nobody reads them) -> old ones removed
//
// A new image shows what the layer shows whose place it takes and has its
// DataWriteGuid, so either will do for whatever stands on it (I-CHAIN-8).
type rebuild struct {
	From int       `json:"from"` // the first of the layers that are replaced
	New  []rebuilt `json:"new,omitempty"`
	// Flat: the lowest new image stands on nothing, also where the volume has an origin.
	Flat bool `json:"flat,omitempty"`
	// Switching: the head may stand on the last new image already.
	Switching bool `json:"switching,omitempty"`
}

// rebuilt is a new image.
type rebuilt struct {
	Image string `json:"image"`
	To    int    `json:"to"` // the layer whose place it takes; those below are merged in
	Bytes int64  `json:"bytes"`
	Done  bool   `json:"done,omitempty"`
}

// When layers are merged. It costs reading and writing all that the rebuilt
// layers hold, so it waits until it is worth that.
const (
	rebuildAfter = 4  // dead layers
	flattenAfter = 32 // images in a chain that another volume's are part of
)

// fault says what is wrong with a rebuild of so many layers.
func (b *rebuild) fault(layers int) string {
	if b == nil {
		return ""
	}
	last := b.From - 1
	for _, n := range b.New {
		if n.To <= last || !validImage(n.Image) || n.Bytes < 0 || n.Bytes > maxCommitted {
			return fmt.Sprintf("rebuilt image %.64q for layer %d", n.Image, n.To)
		}
		last = n.To
	}
	if b.From < 0 || last >= layers && layers > 0 {
		return fmt.Sprintf("a rebuild from layer %d of %d", b.From, layers)
	}
	return ""
}

// covered is how many of the layers need no more work.
func (b *rebuild) covered() int {
	if n := len(b.New); n > 0 {
		return b.New[n-1].To + 1
	}
	return b.From
}

// planRebuild says whether the record's layers should be rebuilt.
func (p *Pool) planRebuild(r *record) (*rebuild, error) {
	if r.Retired || r.Deleting || len(r.Old) > 0 && r.depth() < maxDepth/2 || len(r.Old)+2*maxLayers > 4*maxLayers {
		return nil, nil // the last: the record would become too long
	}
	if loose, err := p.looseOrigin(r); err != nil || loose {
		return &rebuild{Flat: true}, err
	}
	first, dead, needed := -1, 0, false
	for i, l := range r.Layers {
		used, err := p.isNeeded(l)
		if err != nil {
			return nil, err
		}
		needed = needed || used
		if used || i == len(r.Layers)-1 {
			continue
		}
		if dead++; first < 0 {
			first = i
		}
	}
	if dead < rebuildAfter && (needed || dead == 0) {
		return nil, nil
	}
	return &rebuild{From: first}, nil
}

// looseOrigin reports whether the volume should stand on its own feet: the
// chain is long, or the other volume has replaced the layer and keeps it for
// this one alone.
func (p *Pool) looseOrigin(r *record) (bool, error) {
	if r.Origin == nil || r.Origin.Depth == 0 {
		return false, nil
	}
	if r.depth() > flattenAfter {
		return true, nil
	}
	id, err := parseID(r.Origin.Volume)
	if err != nil {
		return false, err
	}
	v, err := p.lineage(id)
	if errors.Is(err, ErrBusy) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(v.Old, func(l layer) bool { return l.Image == r.Origin.Image }), nil
}

func (p *Pool) isNeeded(l layer) (bool, error) {
	if l.Snapshot != "" {
		return true, nil
	}
	return p.hasChildren(l.Image)
}

// rebuildStep does the next piece of a rebuild, if there is one to do. more:
// call it again. ready: all that is left is [Set.Switch].
func (p *Pool) rebuildStep(ctx context.Context, id volumeID, progress func(done, total int64) error) (more, ready bool, err error) {
	s, err := p.lockVolume(ctx, id.hash)
	if err != nil {
		return false, false, err
	}
	r, job, err := s.nextRebuilt(ctx, id)
	s.close()
	if err != nil || job == nil {
		return false, err == nil && r != nil && r.Rebuild != nil, err
	}
	if err := p.fill(ctx, r, job, progress); err != nil {
		return false, false, fmt.Errorf("volume %s: merge layers into image %s: %w", id, job.Image, err)
	}
	if err := p.markDone(ctx, id, job); err != nil {
		return false, false, errors.Join(err, p.removeStray(ctx, id, job.Image))
	}
	return true, false, nil
}

// removeStray removes an image that was filled and that no record names any
// more: the volume was deleted meanwhile.
func (p *Pool) removeStray(ctx context.Context, id volumeID, image string) error {
	s, err := p.lockVolume(ctx, id.hash)
	if err != nil {
		return err
	}
	defer s.close()
	r, err := p.lineage(id)
	if err == nil && r.names(image) || err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	return s.removeFrozen(image)
}

// nextRebuilt begins the next new image, or finds the one that is under way.
func (s *session) nextRebuilt(ctx context.Context, id volumeID) (*record, *rebuilt, error) {
	if err := s.finish(ctx); err != nil {
		return nil, nil, err
	}
	r, err := s.p.live(id)
	if errors.Is(err, ErrNotFound) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	if r, err = s.relink(ctx, r, nil); err != nil {
		return nil, nil, err
	}
	if r.Rebuild == nil {
		if r.Rebuild, err = s.p.planRebuild(r); r.Rebuild == nil || err != nil {
			return r, nil, err
		}
		if len(r.Layers) == 0 { // there has to be something frozen to rebuild
			return r, nil, s.replaceFresh(r)
		}
	}
	if n := len(r.Rebuild.New); n > 0 && !r.Rebuild.New[n-1].Done {
		return r, &r.Rebuild.New[n-1], nil
	}
	start := r.Rebuild.covered()
	if start >= len(r.Layers) || r.Rebuild.Switching {
		return r, nil, nil
	}
	end, bytes := start, r.Layers[start].Bytes
	for ; end < len(r.Layers)-1; end++ {
		used, err := s.p.isNeeded(r.Layers[end])
		if err != nil {
			return nil, nil, err
		}
		if used {
			break
		}
		bytes += r.Layers[end+1].Bytes
	}
	if r.Rebuild.Flat && start == 0 { // and what the origin has
		bytes = max(bytes, footprint(r.Size, r.Params))
	}
	job := rebuilt{Image: uuid.NewString(), To: end, Bytes: bytes + cutSlack + bitmapBytes(r.Size)}
	next := *r
	again := *r.Rebuild
	next.Rebuild = &again
	next.Rebuild.New = append(slices.Clone(again.New), job)
	next.Committed += job.Bytes
	if err := s.change(ctx, r, &next, job.Image, job.Bytes); err != nil {
		return nil, nil, err
	}
	return &next, &job, nil
}

// change replaces the record by one that counts more or less in the account.
func (s *session) change(ctx context.Context, r, next *record, image string, room int64) error {
	o := s.p.newOperation(opChange, r, max(room, 0))
	o.Image, o.Before, o.Copy, o.Fixed = image, r.Committed, true, false
	if err := s.begin(ctx, o, nil); err != nil {
		return s.p.full(err, o.Bytes)
	}
	ctx = context.WithoutCancel(ctx)
	err := s.fresh()
	if err == nil {
		err = s.p.replaceRecord(next)
	}
	if err != nil {
		return errors.Join(err, s.resolve(ctx, o))
	}
	return s.commitChange(ctx, o, next)
}

// fill makes the content of a new image, or goes on where it was left.
func (p *Pool) fill(ctx context.Context, r *record, job *rebuilt, progress func(done, total int64) error) error {
	i := slices.IndexFunc(r.Rebuild.New, func(n rebuilt) bool { return n.Image == job.Image })
	start, base := r.Rebuild.From, ""
	switch {
	case i > 0:
		start, base = r.Rebuild.New[i-1].To+1, r.Rebuild.New[i-1].Image
	case start > 0:
		base = r.Layers[start-1].Image
	case r.Origin != nil && r.Origin.Depth > 0 && !r.Rebuild.Flat:
		base = r.Origin.Image
	}
	top, err := p.openLayer(r.Layers[job.To].Image)
	if err != nil {
		return err
	}
	defer top.Close()
	f, err := p.claimImage(job.Image)
	if err == nil && f == nil {
		f, err = p.newImageFile(job.Image)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	o := vhdx.CollapseOptions{BlockSize: r.Params.BlockSize, Progress: progress}
	if base != "" {
		o.Layers, o.RelativePath = job.To-start+1, parentPath(base)
	}
	err = p.collapseInto(ctx, f, top, o)
	if errors.Is(err, vhdx.ErrCorrupt) || errors.Is(err, vhdx.ErrNotVHDX) {
		// Its creation was cut short. It holds nothing that is not elsewhere.
		if err = f.Truncate(0); err == nil {
			err = p.collapseInto(ctx, f, top, o)
		}
	}
	if err != nil {
		return err
	}
	return p.tree.SyncDir(path.Dir(imagePath(job.Image)))
}

// markDone records that a new image is complete, and what it takes.
func (p *Pool) markDone(ctx context.Context, id volumeID, job *rebuilt) error {
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
	if r.Rebuild == nil || len(r.Rebuild.New) == 0 || r.Rebuild.New[len(r.Rebuild.New)-1].Image != job.Image {
		return fmt.Errorf("volume %s: %w: somebody else rebuilds it", id, ErrBusy)
	}
	bytes, err := p.allocated(job.Image)
	if err != nil {
		return err
	}
	next, again := *r, *r.Rebuild
	next.Rebuild = &again
	again.New = slices.Clone(again.New)
	last := &again.New[len(again.New)-1]
	next.Committed += bytes - last.Bytes
	last.Bytes, last.Done = bytes, true
	return s.change(ctx, r, &next, job.Image, bytes-r.Rebuild.New[len(again.New)-1].Bytes)
}
