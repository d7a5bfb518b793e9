package control

import "fmt"

// On is the holder on a node that is known to have to do with a volume: of one
// that could not be staged there the image is open nowhere. ErrUnreachable.
func (r *Router) On(node string) (Holder, error) {
	switch {
	case r.Local != nil && node == r.Node:
		return r.Local, nil
	case r.Remote == nil:
		return nil, fmt.Errorf("node %s: %w: this process, which serves node %q alone, asks no other", node, ErrUnreachable, r.Node)
	}
	return r.Remote.On(node), nil
}
