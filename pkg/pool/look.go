package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
)

// smallestImage is where the region tables of an image end: a shorter file holds
// nothing.
const smallestImage = 1 << 20

// Look is what a pool knows of a volume without opening it.
type Look struct {
	// Volume of a damaged record has an ID only.
	Volume Volume
	// Err says what is wrong. ErrDamaged: its record; with fs.ErrNotExist or
	// io.ErrUnexpectedEOF, one of its images is missing or cut short.
	Err error
}

// Look reads a volume's record and sees whether its images are there. It opens
// none of them and takes no lock, so that it can be asked all the time.
// ErrNotFound, ErrAway.
func (s *Set) Look(_ context.Context, id string) (Look, error) {
	p, v, err := s.of(id)
	if err != nil {
		return Look{}, err
	}
	r, err := p.live(v)
	switch {
	case err == nil:
		return p.look(r)
	case damaged(err):
		return Look{Volume: Volume{ID: id, Pool: p.name}, Err: err}, nil
	}
	return Look{}, err
}

// LookAll is [Set.List] with a look at each volume. A record that is damaged is
// in no list: Problems names it.
func (s *Set) LookAll(ctx context.Context, token string, max int) ([]Look, string, error) {
	vols, next, err := s.List(ctx, token, max)
	if err != nil {
		return nil, "", err
	}
	all := make([]Look, 0, len(vols))
	for _, v := range vols {
		l, err := s.Look(ctx, v.ID)
		if errors.Is(err, ErrNotFound) {
			continue // deleted since
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, "", fmt.Errorf("look at volume %s: %w", v.ID, err)
		}
		all = append(all, l)
	}
	return all, next, nil
}

// After is the token with which a list goes on after a volume.
func (s *Set) After(id string) (string, error) {
	v, err := parseID(id)
	if err != nil {
		return "", err
	}
	return position{v.pool, v.hash.String()}.token(), nil
}

// look sees whether the images are there. One that is not may have been replaced
// since the record was read: then the record is another one by now.
func (p *Pool) look(r *record) (Look, error) {
	for {
		err := p.seeImages(r)
		if err == nil {
			return Look{Volume: p.volume(r)}, nil
		}
		now, rerr := p.live(r.id)
		if errors.Is(rerr, ErrNotFound) {
			return Look{}, rerr // deleted since
		}
		if rerr != nil || now.Revision == r.Revision {
			return Look{Volume: p.volume(r), Err: err}, nil
		}
		r = now
	}
}

func (p *Pool) seeImages(r *record) error {
	images := []string{r.Image}
	for _, l := range r.Layers {
		images = append(images, l.Image)
	}
	if o := r.Origin; o != nil && o.Depth > 0 {
		images = append(images, o.Image)
	}
	for _, image := range images {
		st, err := p.tree.Stat(imagePath(image))
		if err == nil && st.Size() < smallestImage {
			err = fmt.Errorf("it has %d bytes, and no image has less than %d: %w", st.Size(), smallestImage, io.ErrUnexpectedEOF)
		}
		if err != nil {
			return p.badImage(r, image, err)
		}
	}
	return nil
}

func (p *Pool) badImage(r *record, image string, err error) error {
	where := path.Join(p.tree.Name(), imagePath(image))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("volume %s: %w: its image %s: %w; bring it back from a backup of the share, or restore a snapshot of the volume", r.ID, ErrDamaged, where, err)
	}
	return fmt.Errorf("volume %s: its image %s: %w", r.ID, where, err)
}

// Unreachable reports whether an error is of a share that does not answer, or
// not now, rather than of what was asked for.
func Unreachable(err error) bool { return errors.Is(err, ErrAway) || ofShare(err) }
