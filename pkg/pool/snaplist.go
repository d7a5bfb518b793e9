package pool

import (
	"context"
	"fmt"
)

// SnapshotFilter says which snapshots a list has. The zero value: all.
type SnapshotFilter struct{ Volume string }

// Snapshots returns at most max snapshots that have been taken (0: 1000) from
// where token says, and the token to go on with, "" at the end. The order is as
// that of [Set.List]. ErrBadToken.
func (s *Set) Snapshots(ctx context.Context, f SnapshotFilter, token string, max int) ([]Snapshot, string, error) {
	l := &snapshotList{filter: f, max: pageSize(max), volumes: map[string]*record{}}
	next, err := s.page(token, func(p *Pool, after string) (string, bool, error) {
		l.last = ""
		err := l.list(ctx, p, after)
		return l.last, l.more, err
	})
	if err != nil {
		return nil, "", fmt.Errorf("list snapshots: %w", err)
	}
	return l.found, next, nil
}

// snapshotList is a page that is being filled.
type snapshotList struct {
	filter  SnapshotFilter
	max     int
	found   []Snapshot
	last    string // hash of the last one found in the pool at hand
	more    bool
	volumes map[string]*record // already read, by id
}

func (l *snapshotList) list(ctx context.Context, p *Pool, after string) error {
	return p.walk(ctx, dirSnapshots, after, func(_ string, h hash, b []byte, err error) error {
		if damaged(err) {
			return nil // Problems names it
		}
		if err != nil {
			return err
		}
		r, err := decodeSnapshot(b, p.name, dirSnapshots, h)
		if err != nil || l.filter.Volume != "" && l.filter.Volume != r.Volume {
			return nil //nolint:nilerr // Problems names it
		}
		v, seen := l.volumes[r.Volume]
		if !seen {
			if v, err = p.volumeOf(r); err != nil && !damaged(err) {
				return err
			}
			l.volumes[r.Volume] = v
		}
		s := p.snapshotOf(r, v)
		if !s.Taken {
			return nil
		}
		if len(l.found) == l.max {
			l.more = true
			return errStop
		}
		l.found, l.last = append(l.found, s), h.String()
		return nil
	})
}
