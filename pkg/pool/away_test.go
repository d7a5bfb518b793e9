package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
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
	dir, full := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "data"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, o := range [][]Options{
		{{Name: "a", Dir: dir}, {Name: "b", Dir: dir}},
		{{Name: "a", Dir: dir}, {Name: "a", Dir: t.TempDir()}},
		{{Name: "a", Dir: dir}, {Name: "b", Dir: full}},
		nil,
	} {
		if _, err := OpenSet(t.Context(), time.Minute, func(string, error) {}, o...); err == nil || errors.Is(err, ErrAway) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// I-POOL-14: what is wrong with one pool's directory is told to whoever asks for
// that pool, with the way out, and mends without a new start.
func TestSetMends(t *testing.T) {
	mount := func(t *testing.T, dir string, flags uintptr) {
		if err := syscall.Mount("none", dir, "tmpfs", flags, ""); err != nil {
			t.Skipf("mounting takes root: %v", err)
		}
		t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) }) // the pool is closed later
	}
	for _, tt := range []struct {
		name, says  string
		wreck, mend func(t *testing.T, dir string)
	}{
		{"missing", "mount the share there", func(_ *testing.T, dir string) { os.Remove(dir) }, func(t *testing.T, dir string) {
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Error(err)
			}
		}},
		{"read-only", "mount it read-write", func(t *testing.T, dir string) { mount(t, dir, syscall.MS_RDONLY) }, func(t *testing.T, dir string) { mount(t, dir, 0) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bad := filepath.Join(t.TempDir(), "bad")
			if err := os.Mkdir(bad, 0o700); err != nil {
				t.Fatal(err)
			}
			tt.wreck(t, bad)
			notes := make(chan error, 99)
			s, err := OpenSet(t.Context(), time.Minute, func(_ string, err error) { notes <- err },
				Options{Name: "good", Dir: t.TempDir(), Overcommit: 100}, Options{Name: "bad", Dir: bad, Overcommit: 100})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Close() })
			if _, err := s.CreateVolume(t.Context(), Spec{Name: "v", Size: 1 << 20}); err != nil {
				t.Errorf("in the other pool: %v", err)
			}
			_, err = s.CreateVolume(t.Context(), Spec{Name: "v", Size: 1 << 20, Pool: "bad"})
			if !errors.Is(err, ErrAway) || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), "bad") {
				t.Errorf("it does not say %q: %v", tt.says, err)
			}
			tt.mend(t, bad)
			for err := range notes {
				if err == nil {
					break
				}
			}
			if _, err := s.CreateVolume(t.Context(), Spec{Name: "v", Size: 1 << 20, Pool: "bad"}); err != nil {
				t.Errorf("mended: %v", err)
			}
		})
	}
}
