package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// stage is a pool of groups and the holders of their volumes: what it is told
// to do it notes, and it fails where it is told to.
type stage struct {
	*fake
	control.Holder
	mu     sync.Mutex
	fail   string // the step that fails
	frozen map[string]bool
	cut    []string
	groups map[string]pool.Group
	closed map[string]bool // volumes that nobody has open
}

func (s *stage) step(name string) error {
	if name == s.fail {
		return pool.ErrNoSpace
	}
	return nil
}

func (s *stage) ReserveGroup(_ context.Context, name string, volumes []string) (pool.Group, error) {
	if err := s.step("reserve"); err != nil {
		return pool.Group{}, err
	}
	g := pool.Group{ID: "g-" + name}
	for _, v := range volumes {
		g.Snapshots = append(g.Snapshots, pool.Snapshot{ID: "s-" + v, Volume: v, Group: g.ID})
	}
	s.groups[g.ID] = g
	return g, nil
}

func (s *stage) CommitGroup(_ context.Context, id string) (pool.Group, error) {
	g := s.groups[id]
	if len(s.frozen) > 0 {
		return g, errors.New("committed while frozen")
	}
	g.Taken = true
	return g, s.step("commit")
}

func (s *stage) Group(_ context.Context, id string) (pool.Group, error) {
	g, ok := s.groups[id]
	if !ok {
		return g, pool.ErrNoSnapshot
	}
	return g, nil
}

func (s *stage) DeleteGroup(_ context.Context, id string) error {
	delete(s.groups, id)
	s.cut = nil
	return nil
}

func (s *stage) Freeze(_ context.Context, volume, token string, _ time.Duration) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed[volume] {
		return "", control.ErrNotHeld
	}
	if len(s.cut) > 0 {
		return "", errors.New("frozen after a cut")
	}
	s.frozen[volume] = true
	return control.ConsistencyFilesystem, s.step("freeze " + volume)
}

func (s *stage) Thaw(_ context.Context, volume, _ string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.frozen, volume)
	return s.step("thaw " + volume)
}

func (s *stage) held(volume string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for v := range s.groups["g-g"].Snapshots {
		if id := s.groups["g-g"].Snapshots[v].Volume; !s.frozen[id] && !s.closed[id] {
			return fmt.Errorf("volume %s is not frozen while %s is cut", id, volume)
		}
	}
	s.cut = append(s.cut, volume)
	return nil
}

// holders are those of a stage, whose Cut is another than its pool's.
type holders struct{ *stage }

func (h holders) Follow(context.Context, string) error { return nil }

func (h holders) Cut(_ context.Context, volume, _ string, o control.CutOptions) (control.CutResult, error) {
	if o.Token != "g-g" {
		return control.CutResult{}, errors.New("cut without the token")
	}
	return control.CutResult{}, errors.Join(h.held(volume), h.step("cut "+volume))
}

func (s *stage) Cut(_ context.Context, id string, _ pool.Live) (pool.Snapshot, error) {
	return pool.Snapshot{}, errors.Join(s.held(id[2:]), s.step("cut "+id[2:]))
}

// Whatever fails, nothing is frozen and nothing is left; else all volumes stand
// still while the first is cut.
func TestGroupIsAllOrNothing(t *testing.T) {
	for _, fail := range []string{"", "reserve", "freeze a", "freeze b", "cut a", "cut c", "thaw b", "commit"} {
		t.Run("fails at "+fail, func(t *testing.T) {
			st := &stage{fake: newFake(), fail: fail, frozen: map[string]bool{}, groups: map[string]pool.Group{}, closed: map[string]bool{"c": true}}
			conn := serve(t, newFake(), func(c *Config) {
				c.Controller.Snapshots, c.Controller.Groups, c.Controller.Holders = st, st, holders{st}
			})
			r, err := csi.NewGroupControllerClient(conn).CreateVolumeGroupSnapshot(t.Context(), &csi.CreateVolumeGroupSnapshotRequest{
				Name: "g", SourceVolumeIds: []string{"a", "b", "c"}})
			if len(st.frozen) > 0 {
				t.Fatalf("still frozen: %v", st.frozen)
			}
			if fail == "" {
				if err != nil || len(r.GetGroupSnapshot().GetSnapshots()) != 3 || !r.GetGroupSnapshot().GetReadyToUse() {
					t.Fatalf("%v, %v", r, err)
				}
				slices.Sort(st.cut)
				if !slices.Equal(st.cut, []string{"a", "b", "c"}) {
					t.Fatalf("cut: %v", st.cut)
				}
				return
			}
			wantCode(t, err, codes.ResourceExhausted)
			if len(st.groups) > 0 || len(st.cut) > 0 {
				t.Fatalf("left: %v, %v", st.groups, st.cut)
			}
		})
	}
}
