package pool

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

func takeGroup(ctx context.Context, s *Set, name string, volumes ...string) (Group, error) {
	g, err := s.ReserveGroup(ctx, name, volumes)
	if err != nil || g.Taken {
		return g, err
	}
	for _, snap := range g.Snapshots {
		if _, err := s.Cut(ctx, snap.ID, Live{}); err != nil {
			return g, err
		}
	}
	return s.CommitGroup(ctx, g.ID)
}

func prepareTwo(ctx context.Context, s *Set) (string, error) {
	for _, name := range []string{"victim", "other"} {
		v, err := s.CreateVolume(ctx, small(name))
		if err == nil {
			err = writeText(ctx, s, v.ID, 1)
		}
		if err != nil {
			return "", err
		}
	}
	return "", nil
}

// members fails unless there are so many snapshots in all, each of a group.
func members(n int) func(context.Context, *Set, string) error {
	return func(ctx context.Context, s *Set, _ string) error {
		all, _, err := s.Snapshots(ctx, SnapshotFilter{}, "", 0)
		if err == nil && len(all) != n {
			err = fmt.Errorf("%d snapshots, want %d", len(all), n)
		}
		for _, snap := range all {
			if snap.Group == "" || snap.Size != testDisk {
				err = errors.Join(err, fmt.Errorf("snapshot %+v", snap))
			}
		}
		return err
	}
}

// all or none: I-POOL-18.
func allOrNone(ctx context.Context, s *Set, id string) error {
	if members(0)(ctx, s, id) == nil {
		return nil
	}
	return members(2)(ctx, s, id)
}

func runGroup(ctx context.Context, s *Set, _ string) error {
	_, err := takeGroup(ctx, s, "group", victimID(ctx, s, "victim"), victimID(ctx, s, "other"))
	return err
}

var groupScenarios = []scenario{
	{name: "group", prepare: prepareTwo, run: runGroup, interrupted: allOf(holds(1), allOrNone), done: allOf(holds(1), members(2))},
	{
		name: "delete group",
		prepare: func(ctx context.Context, s *Set) (string, error) {
			if _, err := prepareTwo(ctx, s); err != nil {
				return "", err
			}
			g, err := takeGroup(ctx, s, "group", victimID(ctx, s, "victim"), victimID(ctx, s, "other"))
			return g.ID, err
		},
		run:         func(ctx context.Context, s *Set, id string) error { return s.DeleteGroup(ctx, id) },
		interrupted: allOf(holds(1), allOrNone), done: allOf(holds(1), members(0)),
	},
}

func init() { scenarios = append(scenarios, long(groupScenarios)...) }

func TestGroup(t *testing.T) {
	d := newDisks(t, 1)
	a, b := d.create(Source{}, make([]byte, testDisk)), d.create(Source{}, make([]byte, testDisk))
	ctx := t.Context()
	g, err := takeGroup(ctx, d.s, "g", b, a)
	if err != nil || !g.Taken || len(g.Snapshots) != 2 {
		t.Fatalf("%+v, %v", g, err)
	}
	again, err := takeGroup(ctx, d.s, "g", a, b)
	if err != nil || again.ID != g.ID || !again.Created.Equal(g.Created) {
		t.Fatalf("again: %+v, %v", again, err)
	}
	if _, err := d.s.ReserveGroup(ctx, "g", []string{a}); !errors.Is(err, ErrConflict) {
		t.Fatalf("of other volumes: %v", err)
	}
	half, err := d.s.ReserveGroup(ctx, "half", []string{a, b})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.s.Cut(ctx, half.Snapshots[0].ID, Live{}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.s.CommitGroup(ctx, half.ID); !errors.Is(err, ErrNoSnapshot) {
		t.Fatalf("half a group exists: %v", err)
	}
	whole, err := takeGroup(ctx, d.s, "half", a, b) // begins anew
	if err != nil || whole.ID == half.ID {
		t.Fatalf("%+v, %v", whole, err)
	}
	if err := errors.Join(d.s.DeleteGroup(ctx, g.ID), d.s.DeleteGroup(ctx, whole.ID), d.s.DeleteGroup(ctx, g.ID)); err != nil {
		t.Fatal(err)
	}
	if err := members(0)(ctx, d.s, ""); err != nil {
		t.Fatal(err)
	}
	d.tendAll()
	d.verify()
	audit(t, d.p)
}
