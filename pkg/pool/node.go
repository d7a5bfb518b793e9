package pool

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"time"
)

// nodeRecord is nodes/<shard>/<hash>.json.
type nodeRecord struct {
	ID     string    `json:"id"`
	BootID string    `json:"bootId,omitempty"`
	Seen   time.Time `json:"seen"`

	MaxVolumes int64 `json:"maxVolumes,omitempty"`

	Endpoints    []string      `json:"endpoints,omitempty"`
	Certificates []Certificate `json:"certificates,omitempty"`
}

func nodePath(id string) string {
	h := hashOf(id)
	return path.Join(dirNodes, h.shard(), h.String()+".json")
}

func (p *Pool) registerNode(n Node) error {
	if n.ID == "" || len(n.ID) > maxNodeID {
		return fmt.Errorf("node id of %d bytes: %w: 1 to %d", len(n.ID), ErrInvalid, maxNodeID)
	}
	if reason := n.fault(); reason != "" {
		return fmt.Errorf("node %.256q: %w: %s", n.ID, ErrInvalid, reason)
	}
	if n.Seen.IsZero() {
		n.Seen = time.Now()
	}
	// What a later version has added to the record is kept.
	_, extra, err := p.readNode(n.ID)
	if err != nil && !errors.Is(err, ErrNoNode) && !errors.Is(err, ErrDamaged) {
		return err
	}
	r := nodeRecord(n)
	r.Seen = n.Seen.UTC().Truncate(time.Second)
	b, err := encodeObject(&r, extra)
	if err != nil {
		return err
	}
	name := nodePath(n.ID)
	if err := p.tree.Mkdir(path.Dir(name)); err != nil {
		return err
	}
	return p.tree.Replace(name, b)
}

func (p *Pool) node(id string) (Node, error) {
	n, _, err := p.readNode(id)
	return n, err
}

func (p *Pool) readNode(id string) (Node, extras, error) {
	name := nodePath(id)
	b, err := p.readFile(path.Dir(name), path.Base(name), maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return Node{}, nil, fmt.Errorf("node %.256q in pool %s: %w", id, p.name, ErrNoNode)
	}
	if err != nil {
		return Node{}, nil, err
	}
	n, extra, err := decodeNode(b)
	if err == nil && n.ID != id {
		err = fmt.Errorf("%w: it is of node %.256q", ErrDamaged, n.ID)
	}
	if err != nil {
		return Node{}, nil, fmt.Errorf("pool %s: node record %s: %w", p.name, name, err)
	}
	return n, extra, nil
}

func decodeNode(b []byte) (Node, extras, error) {
	var r nodeRecord
	extra, err := decodeObject(b, &r)
	if err == nil && (r.ID == "" || len(r.ID) > maxNodeID) {
		err = fmt.Errorf("%w: node id of %d bytes", ErrDamaged, len(r.ID))
	}
	if reason := Node(r).fault(); err == nil && reason != "" {
		err = fmt.Errorf("%w: %s", ErrDamaged, reason)
	}
	if err != nil {
		return Node{}, nil, err
	}
	return Node(r), extra, nil
}
