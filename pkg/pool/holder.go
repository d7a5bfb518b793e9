package pool

import (
	"context"
	"fmt"
)

// Holder returns the node that has the volume's image open. held is false where
// nobody has, for an attached volume too: what is attached need not be staged.
//
// The lock on the image decides whether there is one; who it is, only a note
// says, which may be of the holder before. So the node that is named has to be
// asked, and may have to deny it. It takes no lock: a node that opens the image
// at this moment must not find it in use. ErrNotFound, ErrAway, and ErrBusy where
// somebody has it locked whom nothing names, such as an operation of another controller.
func (s *Set) Holder(_ context.Context, id string) (node string, held bool, err error) {
	p, v, err := s.of(id)
	if err != nil {
		return "", false, err
	}
	r, err := p.live(v)
	if err != nil {
		return "", false, err
	}
	f, err := p.openFile(r, true)
	if err != nil {
		return "", false, err
	}
	defer f.Close()
	h, held, err := p.leases.Peek(r.Image, f)
	if err != nil || !held {
		return "", false, err
	}
	switch {
	case h.Node != "":
		return h.Node, true, nil
	case len(r.Attachments) == 1:
		// Readers write no note, and a note can fail to be written.
		return r.Attachments[0].Node, true, nil
	}
	return "", true, fmt.Errorf("volume %s: %w: its image %s is locked, and nothing says by whom; find the process with lsof or fuser if this lasts",
		id, ErrBusy, f.Name())
}
