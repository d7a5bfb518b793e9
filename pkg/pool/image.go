package pool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/fsx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool/lease"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// openImage opens the image of a volume through its lease: record read, image
// opened, lease taken on that description, record read again, log replayed.
// The second look is for a deletion that came between.
func (p *Pool) openImage(ctx context.Context, id volumeID, readOnly bool, o vhdx.OpenOptions) (*vhdx.Image, error) {
	r, err := p.live(id)
	if err == nil && r.unlinked() {
		r, err = p.endRelink(ctx, id)
	}
	if err != nil {
		return nil, err
	}
	f, err := p.openFile(r, readOnly)
	if err != nil {
		if err := p.still(r); err != nil { // its deletion has just taken the image
			return nil, err
		}
		return nil, err
	}
	mode := lease.Exclusive
	if readOnly {
		mode = lease.Shared
	}
	l, err := p.leases.Acquire(ctx, r.Image, f, mode)
	if err != nil {
		f.Close()
		return nil, p.heldError("open", r, err)
	}
	osf, err := p.wrap(id, r, f, l, readOnly)
	if err != nil {
		l.Release() //nolint:errcheck // closing f ends it anyway
		f.Close()
		return nil, err
	}
	o.ReadOnly = readOnly
	o.Parents = imagesOf{p}
	im, err := vhdx.Open(osf, o)
	if errors.Is(err, vhdx.ErrCorrupt) {
		return nil, fmt.Errorf("open volume %s: %w; nothing is written to it: copy it, and see what `vhdxctl check` says of the copy", id, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open volume %s: %w", id, err)
	}
	return im, nil
}

func (p *Pool) openFile(r *record, readOnly bool) (*os.File, error) {
	flag := os.O_RDWR
	if readOnly {
		flag = os.O_RDONLY
	}
	f, err := p.tree.Open(imagePath(r.Image), flag, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fsx.ErrForeign) {
		return nil, fmt.Errorf("open volume %s: %w: its image: %w", r.ID, ErrDamaged, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open volume %s: %w", r.ID, err)
	}
	return f, nil
}

// still reports that a volume has been deleted, or has another image, since its
// record was read.
func (p *Pool) still(r *record) error {
	cur, err := p.live(r.id)
	if err == nil && cur.Image != r.Image {
		err = fmt.Errorf("open volume %s: %w: its image has just changed", r.ID, ErrBusy)
	}
	return err
}

func (p *Pool) wrap(id volumeID, r *record, f *os.File, l lease.Lease, readOnly bool) (*leased, error) {
	if err := p.still(r); err != nil {
		return nil, err
	}
	osf, err := vhdx.NewOSFile(f, vhdx.FileOptions{ReadOnly: readOnly, NoLock: true})
	if err != nil {
		return nil, fmt.Errorf("open volume %s: %w", id, err)
	}
	return &leased{OSFile: osf, lease: l}, nil
}

// leased is an image file whose lease ends with it.
type leased struct {
	*vhdx.OSFile
	lease lease.Lease
}

// Close is called when no I/O is in flight any more.
func (f *leased) Close() error {
	return errors.Join(f.lease.Release(), f.OSFile.Close())
}
