package pool

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"
)

// I-POOL-14: a share that hangs or fails keeps no other pool closed, and its
// volumes are not taken for gone.
func TestSetWithShareAway(t *testing.T) {
	for name, away := range map[string]func(back chan struct{}) error{
		"hangs": func(back chan struct{}) error { <-back; return nil },
		"fails": func(back chan struct{}) error {
			select {
			case <-back:
				return nil
			default:
				return fmt.Errorf("open pool b: %w", syscall.ESTALE)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			back, notes := make(chan struct{}), make(chan error, 99)
			s, err := emptySet([]string{"a", "b"})
			if err != nil {
				t.Fatal(err)
			}
			s.open = func(o Options) (*Pool, error) {
				if o.Name == "b" {
					if err := away(back); err != nil {
						return nil, err
					}
				}
				return Open(o)
			}
			options := []Options{{Name: "a", Dir: t.TempDir(), Overcommit: 100}, {Name: "b", Dir: t.TempDir(), Overcommit: 100}}
			note := func(pool string, err error) {
				if pool != "b" {
					t.Errorf("pool %s: %v", pool, err)
				}
				notes <- err
			}
			patient, lose := context.WithCancel(ctx)
			go func() {
				for len(s.Pools()) == 0 && ctx.Err() == nil {
					time.Sleep(time.Millisecond)
				}
				lose()
			}()
			if err := s.openAll(ctx, patient, note, options); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
			if err := <-notes; !errors.Is(err, ErrAway) {
				t.Fatalf("note %v", err)
			}
			if err := s.RegisterNode(ctx, Node{ID: "n"}); err != nil {
				t.Fatal(err)
			}
			if _, err := s.CreateVolume(ctx, Spec{Name: "v", Size: 1 << 20}); err != nil {
				t.Fatalf("in the pool that is there: %v", err)
			}
			id := "b-f2868e1aa7cab669517cd9f5ab1b7957-9d931010becc8f24"
			_, create := s.CreateVolume(ctx, Spec{Name: "v", Size: 1 << 20, Pool: "b"})
			_, volume := s.Volume(ctx, id)
			_, _, list := s.List(ctx, "", 0)
			_, node := s.Node(ctx, "unknown")
			for what, err := range map[string]error{
				"create": create, "volume": volume, "list": list, "delete": s.DeleteVolume(ctx, id), "detach": s.Detach(ctx, id, ""), "node": node,
			} {
				if !errors.Is(err, ErrAway) || errors.Is(err, ErrNotFound) {
					t.Errorf("%s: %v", what, err)
				}
			}
			close(back)
			for err := range notes {
				if err == nil {
					break
				}
			}
			if _, err := s.CreateVolume(ctx, Spec{Name: "v", Size: 1 << 20, Pool: "b"}); err != nil {
				t.Fatal(err)
			}
			if p, err := s.Pool("b"); err != nil {
				t.Fatal(err)
			} else if _, err := p.node("n"); err != nil {
				t.Fatalf("the node was not registered: %v", err)
			}
		})
	}
}

// A mistake is told at once, and nothing stays open.
func TestOpenSetRefusesMistakes(t *testing.T) {
	dir := t.TempDir()
	for _, o := range [][]Options{
		{{Name: "a", Dir: dir}, {Name: "b", Dir: dir}},
		{{Name: "a", Dir: dir}, {Name: "a", Dir: t.TempDir()}},
		{{Name: "a", Dir: dir}, {Name: "b", Dir: dir + "/nothing"}},
		nil,
	} {
		if _, err := OpenSet(t.Context(), time.Minute, func(string, error) {}, o...); err == nil || errors.Is(err, ErrAway) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
