package disk

import (
	"errors"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// NewImage is an image that gets its name when it is complete (I-CPY-2).
type NewImage struct {
	*vhdx.Image
	draft *vhdx.Draft
	fixed bool
}

// growthStep is large: each step costs a sync, and what is not used is cut off
// at the end.
const growthStep = 256 << 20

// CreateImage begins an image that is to be called path.
func CreateImage(path string, o vhdx.CreateOptions) (*NewImage, vhdx.Created, error) {
	draft, err := vhdx.NewDraft(path)
	if err != nil {
		return nil, vhdx.Created{}, err
	}
	im, created, err := CreateImageOn(draft, o)
	if err != nil {
		return nil, vhdx.Created{}, errors.Join(err, draft.Close())
	}
	return im, created, nil
}

// CreateImageOn begins an image on a draft, which is the image's from then on
// if there is no error.
func CreateImageOn(draft *vhdx.Draft, o vhdx.CreateOptions) (*NewImage, vhdx.Created, error) {
	dup, err := draft.Open()
	if err != nil {
		return nil, vhdx.Created{}, err
	}
	f, err := vhdx.NewOSFile(dup, vhdx.FileOptions{NoLock: true})
	if err != nil {
		return nil, vhdx.Created{}, errors.Join(err, dup.Close())
	}
	created, err := vhdx.CreateOn(f, o)
	if err != nil {
		return nil, vhdx.Created{}, errors.Join(err, f.Close())
	}
	im, err := vhdx.Open(f, vhdx.OpenOptions{GrowthStep: growthStep})
	return &NewImage{im, draft, created.Options.Fixed}, created, err
}

// Resize implements [Resizer].
func (n *NewImage) Resize(size int64) error {
	return n.Image.Resize(size, vhdx.ResizeOptions{})
}

// Fill gives what is in use of the file by the end of the copy all of its
// space, so that it has no holes. Nothing may be written afterwards.
func (n *NewImage) Fill() error {
	if err := n.Close(); err != nil {
		return err
	}
	st, err := n.draft.File().Stat()
	if err != nil {
		return err
	}
	return fill(n.draft.File(), st.Size())
}

// Publish closes the image and gives it its name. With replace, whatever has
// that name now gives way.
func (n *NewImage) Publish(replace bool) error {
	err := n.closeOnce()
	if err == nil {
		err = n.draft.Publish(replace)
	}
	return errors.Join(err, n.draft.Close())
}

// closeOnce closes the image unless Fill has.
func (n *NewImage) closeOnce() error {
	if err := n.Close(); !errors.Is(err, vhdx.ErrClosed) {
		return err
	}
	return nil
}

// Abort leaves nothing.
func (n *NewImage) Abort() error { return errors.Join(n.closeOnce(), n.draft.Close()) }
