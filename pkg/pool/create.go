package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// createVolume makes a volume or returns the one of that name:
//
//	begin (room reserved, image named) -> image made, locked, complete, synced
//	-> its directory synced -> commit (record linked, directory synced, account)
//
// Two controllers that get past each other's lock still agree: the record is
// linked, so one of them finds that it exists (I-POOL-1).
func (p *Pool) createVolume(ctx context.Context, spec Spec) (Volume, error) {
	spec, err := p.complete(spec)
	if err != nil {
		return Volume{}, err
	}
	s, err := p.lockVolume(ctx, hashOf(spec.Name))
	if err != nil {
		return Volume{}, err
	}
	defer s.close()
	r, err := p.readRecord(s.hash)
	if err == nil && r.Deleting {
		if err := s.finish(ctx); err != nil {
			return Volume{}, err
		}
		r, err = p.readRecord(s.hash)
	}
	if err == nil && r.Deleting {
		if err := s.delete(ctx, r); err != nil {
			return Volume{}, fmt.Errorf("finish the deletion of %s: %w", r.ID, err)
		}
		err = fs.ErrNotExist
	}
	switch {
	case err == nil:
		return p.existing(r, spec)
	case errors.Is(err, fs.ErrNotExist):
		return s.create(ctx, spec)
	}
	return Volume{}, err
}

// complete checks a spec and fills in its size.
func (p *Pool) complete(spec Spec) (Spec, error) {
	if spec.Name == "" || len(spec.Name) > MaxName {
		return spec, fmt.Errorf("volume name of %d bytes: %w: 1 to %d", len(spec.Name), ErrInvalid, MaxName)
	}
	if f := cmp.Or(spec.Params.fault(), spec.Limits.fault(), spec.OnFull.fault()); f != "" {
		return spec, fmt.Errorf("volume %q: %w: %s", spec.Name, ErrInvalid, f)
	}
	if err := p.completeSource(&spec); err != nil {
		return spec, fmt.Errorf("volume %q: %w", spec.Name, err)
	}
	if spec.Size < 0 || spec.Limit < 0 || spec.Limit > 0 && spec.Size > spec.Limit {
		return spec, fmt.Errorf("volume %q: %w: size %d with limit %d", spec.Name, ErrInvalid, spec.Size, spec.Limit)
	}
	sector := spec.Params.sector()
	if spec.Size == 0 {
		spec.Size = defaultSize
		if spec.Limit > 0 {
			spec.Size = min(spec.Size, spec.Limit/sector*sector)
		}
	}
	if spec.Size == 0 || spec.Size > maxSize {
		return spec, fmt.Errorf("volume %q: %w: %d bytes, largest %d", spec.Name, ErrOutOfRange, spec.Size, int64(maxSize))
	}
	spec.Size = roundUp(spec.Size, sector)
	if spec.Limit > 0 && spec.Size > spec.Limit {
		return spec, fmt.Errorf("volume %q: %w: no multiple of %d from %d to %d", spec.Name, ErrOutOfRange, sector, spec.Size, spec.Limit)
	}
	return spec, nil
}

// existing answers a creation with the volume there is, if it fits. Its record
// may have been linked by a process that died before it could sync.
func (p *Pool) existing(r *record, spec Spec) (Volume, error) {
	switch {
	case r.name() != spec.Name:
		return Volume{}, fmt.Errorf("volume %q: %w: another name, %q, has its hash", spec.Name, ErrConflict, r.name())
	case r.Size < spec.Size || spec.Limit > 0 && r.Size > spec.Limit:
		return Volume{}, fmt.Errorf("volume %q: %w: it has %d bytes", spec.Name, ErrConflict, r.Size)
	case r.Params != spec.Params:
		return Volume{}, fmt.Errorf("volume %q: %w: its parameters are %+v", spec.Name, ErrConflict, r.Params)
	case r.Source != spec.Source.String():
		return Volume{}, fmt.Errorf("volume %q: %w: it was made of %s", spec.Name, ErrConflict, cmp.Or(r.Source, "nothing"))
	}
	if err := p.tree.SyncDir(path.Dir(p.recordPath(r.id.hash))); err != nil {
		return Volume{}, err
	}
	return p.volume(r), nil
}

func (s *session) create(ctx context.Context, spec Spec) (Volume, error) {
	if spec.Source.Of != "" && spec.Source.Snapshot == "" {
		return Volume{}, fmt.Errorf("create volume %q: %w: the volume that was there has just been deleted", spec.Name, ErrBusy)
	}
	r := newRecord(s.p, spec)
	src, err := s.p.open(ctx, r, spec)
	if err != nil {
		return Volume{}, err
	}
	defer src.Close()
	o := s.p.newOperation(opCreate, r, r.Committed)
	o.Parent, o.Copy = src.parent(), src != nil && !src.attached
	if err := s.begin(ctx, o, nil); err != nil {
		return Volume{}, s.p.full(err, o.Bytes)
	}
	ctx = context.WithoutCancel(ctx)
	f, err := s.build(ctx, r, src)
	if err == nil {
		err = s.commit(ctx, o, func() error { return s.p.linkRecord(r) })
		f.Close() // only now is the image anybody's
	}
	if err != nil {
		return s.afterFailure(ctx, r, o, err)
	}
	return s.p.volume(r), nil
}

// afterFailure undoes a creation, unless its record was linked after all.
func (s *session) afterFailure(ctx context.Context, r *record, o *operation, cause error) (Volume, error) {
	// First, for on a full share it makes room for the rest.
	err := s.disown(o) //nolint:contextcheck // what it does is short
	if err == nil {
		err = s.resolve(ctx, o)
	}
	if err != nil {
		// It stays in the account, which names the image, for the collector.
		return Volume{}, errors.Join(s.p.full(cause, o.Bytes), fmt.Errorf("undo: %w: %w", ErrBusy, err))
	}
	if errors.Is(cause, errSuperseded) || errors.Is(cause, errNoAccount) {
		cause = fmt.Errorf("create volume %q: %w: %w", r.name(), ErrBusy, cause)
	}
	return Volume{}, s.p.full(cause, o.Bytes)
}

// disown removes the image of a creation that has failed. The account need not
// know of it any more: whoever took it over may have come before the image did.
func (s *session) disown(o *operation) error {
	r, err := s.recordOf(o)
	if r != nil || err != nil {
		return err
	}
	if err := s.p.removeUnborn(o); err != nil {
		return err
	}
	return s.p.disclaim(o.Parent, o.Image)
}

// buildImage makes the image, complete and durable, and returns it open and
// locked (I-POOL-3).
func (p *Pool) buildImage(r *record) (io.Closer, error) {
	name := imagePath(r.Image)
	f, err := p.newImageFile(r.Image)
	if err != nil {
		return nil, err
	}
	osf, err := vhdx.NewOSFile(f, vhdx.FileOptions{NoLock: true})
	if err != nil {
		f.Close()
		return nil, err
	}
	if err = p.fillImage(osf, r); err == nil {
		err = p.tree.SyncDir(path.Dir(name))
	}
	if err != nil {
		osf.Close()
		return nil, fmt.Errorf("build image %s: %w", name, err)
	}
	return osf, nil
}

func (p *Pool) fillImage(f *vhdx.OSFile, r *record) error {
	_, err := vhdx.CreateOn(p.stepped(f), vhdx.CreateOptions{
		Size: r.Size, Fixed: r.Params.Fixed, BlockSize: r.Params.BlockSize, LogSize: r.Params.LogSize,
		LogicalSectorSize: r.Params.LogicalSectorSize,
	})
	if errors.Is(err, vhdx.ErrInvalid) {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return err
}

// linkRecord makes the volume exist.
func (p *Pool) linkRecord(r *record) error {
	b, err := r.encode()
	if err != nil {
		return err
	}
	name := p.recordPath(r.id.hash)
	if err := p.tree.Mkdir(path.Dir(name)); err != nil {
		return err
	}
	return p.tree.LinkOnce(name, b)
}

// full turns a full filesystem or quota into ErrNoSpace.
func (p *Pool) full(err error, want int64) error {
	if !isFull(err) || errors.Is(err, ErrNoSpace) {
		return err
	}
	ph, _ := p.disk() // where that fails too, the message says zero
	return errors.Join(&SpaceError{Pool: p.name, Want: want, Have: ph.free, Bound: boundFree}, err)
}
