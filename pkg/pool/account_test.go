package pool

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool/lease"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// TestAccount runs random operations through two pools on one directory, with
// faults between, and holds the account against a model and the records.
func TestAccount(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir := memDir(t)
		defer os.RemoveAll(dir)
		failAt := 0
		fault := func(string, string) error {
			if failAt--; failAt == 0 {
				return os.ErrDeadlineExceeded
			}
			return nil
		}
		var sets []*Set
		for range 2 {
			p, err := open(Options{Name: "p", Dir: dir, Overcommit: 1000}, fault)
			if err != nil {
				rt.Fatal(err)
			}
			s, err := NewSet(p)
			if err != nil {
				rt.Fatal(err)
			}
			defer s.Close()
			sets = append(sets, s)
		}
		ids := map[string]string{}
		name := rapid.SampledFrom([]string{"a", "b", "c", "d"})
		pick := rapid.SampledFrom(sets)
		arm := func(rt *rapid.T) { failAt = rapid.IntRange(0, 60).Draw(rt, "fail at") }
		rt.Repeat(map[string]func(*rapid.T){
			"create": func(rt *rapid.T) {
				n, s := name.Draw(rt, "name"), pick.Draw(rt, "set")
				arm(rt)
				v, err := s.CreateVolume(t.Context(), Spec{Name: n, Size: int64(rapid.IntRange(1, 64).Draw(rt, "MiB")) << 20})
				if failAt = 0; err == nil {
					ids[n] = v.ID
				}
			},
			"delete": func(rt *rapid.T) {
				n, s := name.Draw(rt, "name"), pick.Draw(rt, "set")
				arm(rt)
				err := s.DeleteVolume(t.Context(), ids[n])
				if failAt = 0; err == nil {
					delete(ids, n)
				}
			},
			"resize": func(rt *rapid.T) {
				n, s := name.Draw(rt, "name"), pick.Draw(rt, "set")
				arm(rt)
				s.Resize(t.Context(), ids[n], int64(rapid.IntRange(1, 128).Draw(rt, "MiB"))<<20) //nolint:errcheck // judged below
				failAt = 0
			},
			"lose the account": func(*rapid.T) { os.Remove(filepath.Join(dir, fileAccount)) },
			"": func(rt *rapid.T) {
				p := sets[0].Pools()[0]
				if _, err := p.Collect(t.Context()); err != nil {
					rt.Fatal(err)
				}
				if _, err := p.recountNow(t.Context()); err != nil {
					rt.Fatal(err)
				}
				a, err := p.readAccount()
				if err != nil {
					rt.Fatal(err)
				}
				sum, err := p.sumRecords(t.Context())
				if err != nil {
					rt.Fatal(err)
				}
				if a.Committed != sum.Committed || len(a.Operations) != len(sum.Operations) {
					rt.Fatalf("I-POOL-7: the account says %d and %d operations, the records %d and %d", a.Committed, len(a.Operations), sum.Committed, len(sum.Operations))
				}
			},
		})
	})
}

// TestSuperseded is I-POOL-3 and I-POOL-9: a creation that was taken for dead
// while its process slept cannot be committed, and neither can a deletion.
func TestSuperseded(t *testing.T) {
	dir := memDir(t)
	_, other := openSet(t, dir)
	for _, at := range []string{"mkdir images/", "sync image ", "sync directory images/"} {
		t.Run(at, func(t *testing.T) {
			deletion := strings.HasPrefix(at, "sync directory")
			asleep := true
			var sleeper *Pool
			p, err := open(Options{Name: "p", Dir: dir, Overcommit: 1000}, func(op, path string) error {
				if !strings.HasPrefix(op+" "+path, at) || !asleep || sleeper == nil {
					return nil
				}
				asleep = false
				takeOver(t, other)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			s, err := NewSet(p)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			name := "victim of " + at
			if deletion {
				v := create(t, s, name)
				sleeper = p
				if err := s.DeleteVolume(t.Context(), v.ID); !errors.Is(err, ErrBusy) {
					t.Fatalf("a deletion that was taken over: %v", err)
				}
				if err := s.DeleteVolume(t.Context(), v.ID); err != nil {
					t.Fatal(err)
				}
			} else {
				sleeper = p
				if _, err := s.CreateVolume(t.Context(), Spec{Name: name, Size: gib}); !errors.Is(err, ErrBusy) {
					t.Fatalf("a creation that was taken over: %v", err)
				}
				create(t, s, name)
			}
			if asleep {
				t.Fatal("the step was never reached")
			}
			if _, err := other.Collect(t.Context()); err != nil {
				t.Fatal(err)
			}
			audit(t, other)
		})
	}
}

// takeOver resolves every operation as if the locks of its process were lost.
func takeOver(t *testing.T, p *Pool) {
	t.Helper()
	a, err := p.readAccount()
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range a.Operations {
		s, err := p.newSession(o.hash, func(s *session) error { s.at = bootTime(); return nil })
		if err != nil {
			t.Fatal(err)
		}
		// The image's lock is not lost here, so what is being built stays.
		if err := s.resolve(t.Context(), o); err != nil && !errors.Is(err, lease.ErrHeld) {
			t.Fatal(err)
		}
		s.close()
	}
}

// TestStaleLock is I-POOL-9 for plain records.
func TestStaleLock(t *testing.T) {
	s, p := newSet(t)
	v := create(t, s, "v")
	p.maxHold = -time.Second
	for what, err := range map[string]error{
		"SetUse":       s.SetUse(t.Context(), v.ID, UseMounted),
		"DeleteVolume": s.DeleteVolume(t.Context(), v.ID),
	} {
		wantErr(t, what, err, ErrBusy, "longer than it is trusted")
	}
	_, err := s.CreateVolume(t.Context(), Spec{Name: "w", Size: gib})
	wantErr(t, "CreateVolume", err, ErrBusy)
	p.maxHold = maxHold
	if got, err := s.Volume(t.Context(), v.ID); err != nil || got.Use != UseNever {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, err := p.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	audit(t, p)
}

// TestCollectSparesTheLiving is I-POOL-3: collecting at every step of a
// creation takes nothing away from it.
func TestCollectSparesTheLiving(t *testing.T) {
	dir := memDir(t)
	_, collector := openSet(t, dir)
	armed := false
	p, err := open(Options{Name: "p", Dir: dir, Overcommit: 1000}, func(op, path string) error {
		if armed {
			if _, err := collector.Collect(t.Context()); err != nil {
				t.Errorf("collect before %s %s: %v", op, path, err)
			}
			if probs := collector.problems(t.Context()); len(probs) > 0 {
				t.Errorf("problems before %s %s: %v", op, path, probs)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSet(p)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	armed = true
	v := create(t, s, "v")
	if _, err := s.Resize(t.Context(), v.ID, 2*gib); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteVolume(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	armed = false
	audit(t, p)
}

// TestUnbornWithData is I-POOL-4: an image that holds data is not removed
// although the account calls it that of a creation that did not happen.
func TestUnbornWithData(t *testing.T) {
	for _, fixed := range []bool{false, true} {
		t.Run(fmt.Sprint("fixed=", fixed), func(t *testing.T) {
			s, p := newSet(t)
			v, err := s.CreateVolume(t.Context(), Spec{Name: "v", Size: 8 << 20, Params: Params{Fixed: fixed, BlockSize: 1 << 20}})
			if err != nil {
				t.Fatal(err)
			}
			im, err := s.OpenImage(t.Context(), v.ID, false, vhdx.OpenOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := im.WriteAt([]byte(strings.Repeat("data", 1024)), 1<<20); err != nil {
				t.Fatal(err)
			}
			if err := im.Close(); err != nil {
				t.Fatal(err)
			}
			unborn(t, p, v)
			if _, err := p.Collect(t.Context()); !errors.Is(err, ErrDamaged) {
				t.Fatalf("Collect: %v", err)
			}
			if _, err := os.Stat(v.Image); err != nil {
				t.Fatalf("I-POOL-4: %v", err)
			}
		})
	}
}

// TestUnborn: an image without data is removed then, complete or not.
func TestUnborn(t *testing.T) {
	for _, fixed := range []bool{false, true} {
		for _, size := range []int64{-1, 0, 100, 1 << 20, 3 << 20} {
			s, p := newSet(t)
			v, err := s.CreateVolume(t.Context(), Spec{Name: "v", Size: 8 << 20, Params: Params{Fixed: fixed, BlockSize: 1 << 20}})
			if err != nil {
				t.Fatal(err)
			}
			if size >= 0 {
				if err := os.Truncate(v.Image, size); err != nil {
					t.Fatal(err)
				}
			}
			unborn(t, p, v)
			c, err := p.Collect(t.Context())
			if err != nil || c.Operations != 1 {
				t.Fatalf("fixed %v, size %d: %+v, %v", fixed, size, c, err)
			}
			if left := files(t, p); len(left) > 0 {
				t.Fatalf("fixed %v, size %d: %v", fixed, size, left)
			}
			audit(t, p)
		}
	}
}

// unborn turns a volume back into an interrupted creation.
func unborn(t *testing.T, p *Pool, v Volume) {
	t.Helper()
	r, err := p.live(mustParse(t, v.ID))
	if err != nil {
		t.Fatal(err)
	}
	s, err := p.lockVolume(t.Context(), r.id.hash)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	err = s.account(t.Context(), func(a *account) error {
		a.Committed -= r.Committed
		o := p.newOperation(opCreate, r, r.Committed)
		a.Operations = map[string]*operation{o.key: o}
		return p.tree.Remove(p.recordPath(r.id.hash))
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
}

// TestManyOperations: the account stays bounded.
func TestManyOperations(t *testing.T) {
	s, p := newSet(t)
	create(t, s, "v")
	l, err := p.lockVolume(t.Context(), hashOf("x"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	err = l.account(t.Context(), func(a *account) error {
		a.Operations = map[string]*operation{}
		for range maxOperations {
			o := p.newOperation(opCreate, newRecord(p, Spec{Name: "x", Size: gib}), 0)
			a.Operations[o.key] = o
		}
		return nil
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.CreateVolume(t.Context(), Spec{Name: "w", Size: gib})
	wantErr(t, "one more", err, ErrBusy, "1000 operations")
	fi, err := os.Stat(filepath.Join(p.tree.Name(), fileAccount))
	if err != nil || fi.Size() > maxAccount {
		t.Fatalf("the account has %d bytes, bound %d, %v", fi.Size(), maxAccount, err)
	}
}
