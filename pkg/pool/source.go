package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/fsx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// Source is what a volume begins with: a snapshot of the same pool. The zero
// value is nothing.
type Source struct {
	Snapshot string // id
	Mode     CloneMode
	// Of is how a caller calls the source, where it is not the snapshot: the
	// volume that the snapshot was made of for this. "": the snapshot.
	Of string
}

func (s Source) String() string {
	if s.Of != "" {
		return s.Of
	}
	return s.Snapshot
}

// CloneMode is how a volume gets what its source holds.
type CloneMode string

// The modes. Whatever the mode, the source may be deleted at once.
const (
	// CloneLink makes a child of the source, at once, whatever the size.
	CloneLink CloneMode = ""
	// CloneReflink shares the source's blocks by means of the filesystem where
	// that can be done, and is CloneCopy elsewhere.
	CloneReflink CloneMode = "reflink"
	// CloneCopy copies what the source holds.
	CloneCopy CloneMode = "copy"
)

func (m CloneMode) valid() bool { return m == CloneLink || m == CloneReflink || m == CloneCopy }

// footprint is what the volume counts in the account when it is made.
func (s Spec) footprint() int64 {
	n := footprint(s.Size, s.Params)
	if s.Source.Snapshot != "" {
		n += bitmapBytes(s.Size)
	}
	return n
}

// completeSource fills in what a spec has from its source.
func (p *Pool) completeSource(spec *Spec) error {
	if spec.Source.Snapshot == "" {
		return nil
	}
	if !spec.Source.Mode.valid() {
		return fmt.Errorf("%w: clone mode %.32q", ErrInvalid, spec.Source.Mode)
	}
	_, l, err := p.layerOf(spec.Source.Snapshot)
	if errors.Is(err, ErrNoSnapshot) {
		// It may be gone because the volume is made already.
		if r, rerr := p.readRecord(hashOf(spec.Name)); rerr == nil && !r.Deleting && r.Source == spec.Source.String() {
			spec.Size = cmp.Or(spec.Size, r.Size)
			return nil
		}
	}
	if err != nil {
		return err
	}
	switch {
	case spec.Size == 0 && (spec.Limit == 0 || spec.Limit >= l.Size):
		spec.Size = l.Size
	case l.Use == UseMounted && l.FSType != "" && spec.Params.FSType != "" && l.FSType != spec.Params.FSType:
		return fmt.Errorf("%w: its source holds %s, the class or claim asks for %s", ErrInvalid, l.FSType, spec.Params.FSType)
	case spec.Size < l.Size:
		return fmt.Errorf("%w: %d bytes are less than the %d of its source", ErrOutOfRange, spec.Size, l.Size)
	}
	return nil
}

// layerOf finds the layer that a snapshot is, and the record it is in.
func (p *Pool) layerOf(snapshot string) (*record, layer, error) {
	id, err := parseID(snapshot)
	if err != nil || id.pool != p.name {
		return nil, layer{}, fmt.Errorf("snapshot %.128q: %w in pool %s", snapshot, ErrNoSnapshot, p.name)
	}
	snap, err := p.findSnapshot(id)
	if err != nil {
		return nil, layer{}, err
	}
	v, err := p.volumeOf(snap)
	if err != nil {
		return nil, layer{}, err
	}
	if v != nil {
		if l, ok := v.snapshot(snap.ID); ok {
			return v, l, nil
		}
	}
	return nil, layer{}, fmt.Errorf("snapshot %s: %w: it has not been taken", snapshot, ErrNoSnapshot)
}

// opened is the source of a volume that is being made; nil: it has none.
type opened struct {
	image    *vhdx.Image // read-only, so that it stays as long as this is open
	layer    layer
	lineage  *record
	mode     CloneMode
	attached bool // the volume will stand on it
}

// Close lets the source go.
func (o *opened) Close() {
	if o != nil {
		o.image.Close()
	}
}

// parent is the image that the new one will be a child of; "": of none.
func (o *opened) parent() string {
	if o == nil || !o.attached {
		return ""
	}
	return o.layer.Image
}

// open opens the source of a volume and completes the record with what is known
// of it.
func (p *Pool) open(ctx context.Context, r *record, spec Spec) (*opened, error) {
	if spec.Source.Snapshot == "" {
		return nil, nil
	}
	v, l, err := p.layerOf(spec.Source.Snapshot)
	if err != nil {
		return nil, err
	}
	o := &opened{layer: l, lineage: v, mode: spec.Source.Mode, attached: spec.Source.Mode == CloneLink}
	r.Use, r.FSType = l.Use, l.FSType
	if o.attached {
		r.Origin = &origin{Volume: v.ID, Image: l.Image, Depth: v.depthOf(l.Image), As: r.Image}
		if r.Origin.Depth >= maxDepth-1 {
			return nil, fmt.Errorf("snapshot %s: %w: it stands on %d images; use cloneMode copy", spec.Source.Snapshot, ErrChainFull, r.Origin.Depth)
		}
	}
	if o.image, err = p.openLayer(l.Image); err != nil {
		return nil, fmt.Errorf("open snapshot %s: %w", spec.Source.Snapshot, err)
	}
	if a, b := int64(o.image.LogicalSectorSize()), r.Params.sector(); a != b && r.Params.LogicalSectorSize != 0 {
		o.Close()
		return nil, fmt.Errorf("snapshot %s: %w: it has logical sectors of %d bytes, the class asks for %d", spec.Source.Snapshot, ErrInvalid, a, b)
	}
	return o, ctx.Err()
}

// depthOf is how many images there are from one of the layers down.
func (r *record) depthOf(image string) int {
	n := 0
	if r.Origin != nil {
		n = r.Origin.Depth
	}
	for i, l := range r.Layers {
		if l.Image == image {
			return n + i + 1
		}
	}
	return n
}

// openLayer opens a frozen image, and what is below it, to be read. Nobody
// removes it while it is open.
func (p *Pool) openLayer(image string) (*vhdx.Image, error) {
	f, err := p.openFrozen(image)
	if err != nil {
		return nil, err
	}
	return vhdx.Open(f, vhdx.OpenOptions{ReadOnly: true, Parents: imagesOf{p}})
}

// build makes the image of a new volume.
func (s *session) build(ctx context.Context, r *record, src *opened) (io.Closer, error) {
	p := s.p
	switch {
	case src == nil:
		return p.buildImage(r)
	case !src.attached:
		return p.buildCopy(ctx, r, src)
	}
	if err := s.stand(ctx, r, src); err != nil {
		return nil, err
	}
	return p.buildChild(ctx, r.Image, src.image, vhdx.ChildOptions{
		Size: r.Size, BlockSize: r.Params.BlockSize, LogSize: r.Params.LogSize, RelativePath: parentPath(src.layer.Image),
	})
}

// standWait is how long a creation waits for its source's lock against the order.
const standWait = 5 * time.Second

// stand announces the new volume to the layer that it will stand on, which must
// still be one (I-POOL-16).
func (s *session) stand(ctx context.Context, r *record, src *opened) error {
	p := s.p
	if src.lineage.id.hash != s.hash { // else it had the very name that the new one has
		if src.lineage.id.hash.lock() < s.hash.lock() {
			// Two that are made, each of what had the other's name before, would
			// wait for each other: whoever waits against the order gives up.
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, standWait)
			defer cancel()
		}
		other, err := p.lockVolume(ctx, src.lineage.id.hash)
		if err != nil {
			return err
		}
		defer other.close()
		s = other
	}
	v, err := p.lineage(src.lineage.id)
	if err != nil {
		return err
	}
	if !v.names(src.layer.Image) {
		return fmt.Errorf("volume %q: %w: its source has just been moved", r.name(), ErrBusy)
	}
	if err := s.fresh(); err != nil {
		return err
	}
	return p.announce(src.layer.Image, r.Image)
}

// buildCopy makes an image of its own with what the source holds. The volume
// grows to its size when it is opened.
func (p *Pool) buildCopy(ctx context.Context, r *record, src *opened) (io.Closer, error) {
	f, err := p.newImageFile(r.Image)
	if err != nil {
		return nil, err
	}
	err = errNoReflink
	if src.mode == CloneReflink && src.lineage.depthOf(src.layer.Image) == 1 && r.fits(src.image.Info()) {
		err = p.reflink(f, src.layer.Image)
	}
	if errors.Is(err, errNoReflink) {
		err = p.collapseInto(ctx, f, src.image, vhdx.CollapseOptions{BlockSize: r.Params.BlockSize})
	}
	if err == nil {
		err = p.tree.SyncDir(path.Dir(imagePath(r.Image)))
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("copy into image %s: %w", imagePath(r.Image), p.full(err, r.Committed))
	}
	return f, nil
}

// fits reports whether an image like this one takes no more than the volume
// counts in the account, whatever the class says of blocks and log (I-POOL-7).
func (r *record) fits(like vhdx.Info) bool {
	as := Params{BlockSize: like.BlockSize, LogSize: like.LogSize}
	return footprint(r.Size, as) <= footprint(r.Size, r.Params)
}

// errNoReflink: the filesystem does not share blocks between files.
var errNoReflink = errors.New("the filesystem cannot share blocks between files")

// reflink makes f, empty, a copy of an image that shares its blocks.
func (p *Pool) reflink(f *os.File, image string) error {
	src, err := p.tree.Open(imagePath(image), os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer src.Close()
	switch err := fsx.Reflink(f, src); {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EXDEV), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("%w: %w", errNoReflink, err)
	case err != nil:
		return err
	}
	return f.Sync()
}

// collapseInto fills f, which stays open and locked, with an image's content.
func (p *Pool) collapseInto(ctx context.Context, f *os.File, top *vhdx.Image, o vhdx.CollapseOptions) error {
	same, err := fsx.Dup(f)
	if err != nil {
		return err
	}
	osf, err := vhdx.NewOSFile(same, vhdx.FileOptions{NoLock: true})
	if err != nil {
		same.Close()
		return err
	}
	return top.CollapseOn(ctx, p.stepped(osf), o)
}
