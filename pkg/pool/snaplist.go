package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
)

// SnapshotFilter says which snapshots a list has. The zero value: all.
type SnapshotFilter struct{ Volume string }

// Snapshots returns at most max snapshots that have been taken (0: 1000) from
// where token says, and the token to go on with, "" at the end. The order is as
// that of [Set.List]. ErrBadToken.
func (s *Set) Snapshots(ctx context.Context, f SnapshotFilter, token string, max int) ([]Snapshot, string, error) {
	if max <= 0 {
		max = maxPage
	}
	var at position
	if token != "" {
		var err error
		if at, err = parseToken(token); err != nil {
			return nil, "", err
		}
		if !slices.Contains(s.names, at.pool) {
			return nil, "", fmt.Errorf("list token: %w: its pool %s is not served here", ErrBadToken, at.pool)
		}
	}
	have, err := s.whole()
	if err != nil {
		return nil, "", fmt.Errorf("list snapshots: %w", err)
	}
	l := &snapshotList{filter: f, max: max, volumes: map[string]*record{}}
	pools := slices.SortedFunc(slices.Values(have), func(a, b *Pool) int { return cmp.Compare(a.name, b.name) })
	for _, p := range pools {
		if p.name < at.pool {
			continue
		}
		after := ""
		if p.name == at.pool {
			after = at.hash
		}
		if err := l.list(ctx, p, after); err != nil {
			return nil, "", fmt.Errorf("list pool %s: %w", p.name, err)
		}
		if l.more {
			return l.found, position{p.name, l.last}.token(), nil
		}
	}
	return l.found, "", nil
}

// snapshotList is a page that is being filled.
type snapshotList struct {
	filter  SnapshotFilter
	max     int
	found   []Snapshot
	last    string // hash of the last one found
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
			if v, err = p.volumeOf(r); err != nil && !errors.Is(err, ErrBusy) && !damaged(err) {
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
