package pool

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

func TestRoom(t *testing.T) {
	const g = gib
	pending := func(bytes int64, kind opKind, fixed bool) map[string]*operation {
		return map[string]*operation{"x": {Kind: kind, Bytes: bytes, Fixed: fixed}}
	}
	for _, c := range []struct {
		what           string
		overcommit     float64
		reserve        int64
		ph             physical
		committed      int64
		ops            map[string]*operation
		dynamic, fixed int64
	}{
		{"empty", 1, 0, physical{100 * g, 100 * g}, 0, nil, 100 * g, 100 * g},
		{"committed", 1, 0, physical{100 * g, 90 * g}, 30 * g, nil, 70 * g, 70 * g},
		{"others' files", 1, 0, physical{100 * g, 20 * g}, 0, nil, 20 * g, 20 * g},
		{"reserve", 1, 10 * g, physical{100 * g, 100 * g}, 0, nil, 90 * g, 90 * g},
		{"overcommit", 3, 0, physical{100 * g, 50 * g}, 100 * g, nil, 150 * g, 50 * g},
		{"overcommit and reserve", 3, 10 * g, physical{100 * g, 50 * g}, 100 * g, nil, 140 * g, 40 * g},
		{"full", 1, 0, physical{100 * g, 0}, 0, nil, 0, 0},
		{"over", 1, 0, physical{100 * g, 50 * g}, 150 * g, nil, 0, 0},
		{"creation under way", 2, 0, physical{100 * g, 100 * g}, 50 * g, pending(10*g, opCreate, false), 140 * g, 100 * g},
		{"fixed creation under way", 2, 0, physical{100 * g, 100 * g}, 50 * g, pending(10*g, opCreate, true), 140 * g, 90 * g},
		{"growth under way", 1, 0, physical{100 * g, 100 * g}, 50 * g, pending(10*g, opGrow, false), 40 * g, 40 * g},
		{"deletion under way", 1, 0, physical{100 * g, 100 * g}, 50 * g, pending(10*g, opDelete, true), 50 * g, 50 * g},
		{"boundless", 1000, 0, physical{math.MaxInt64 / 2, math.MaxInt64 / 2}, 0, nil, 1 << 61, 1 << 61},
	} {
		p := &Pool{overcommit: c.overcommit, reserve: c.reserve}
		dynamic, fixed := p.room(&account{accountStored: accountStored{Committed: c.committed, Operations: c.ops}}, c.ph)
		if dynamic != c.dynamic || fixed != c.fixed {
			t.Errorf("%s: dynamic %d, fixed %d; want %d, %d", c.what, dynamic, fixed, c.dynamic, c.fixed)
		}
	}
	if bytesOf(math.MaxUint64, 4096) <= 0 || bytesOf(1<<40, 1<<20) <= 0 {
		t.Error("an overflow")
	}
}

// TestFootprint: no image takes more than its record commits, but for the space
// it grows ahead while it is open.
func TestFootprint(t *testing.T) {
	s, p := newSet(t)
	for i, c := range []Spec{
		{Size: 512}, {Size: 1 << 20}, {Size: 100 << 20}, {Size: 100<<20 + 512},
		{Size: 20 << 20, Params: Params{BlockSize: 3 << 20, LogSize: 3<<20 + 1}},
		{Size: 20 << 20, Params: Params{BlockSize: 1 << 20, LogicalSectorSize: 4096}},
	} {
		c.Name, c.Params.Fixed = fmt.Sprint("v", i), true
		v, err := s.CreateVolume(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		fi, err := os.Stat(v.Image)
		if err != nil {
			t.Fatal(err)
		}
		if want := footprint(v.Size, v.Params); fi.Size() > want || fi.Size() < v.Size {
			t.Errorf("%+v: the image has %d bytes, committed are %d", c, fi.Size(), want)
		}
	}
	audit(t, p)
	for _, size := range []int64{512, gib, gib + 512, 100 * gib, 33 << 40, 64 << 40} {
		if f := footprint(size, Params{}); f < size || f > size+size/512+80*mib {
			t.Errorf("footprint of %d is %d", size, f)
		}
	}
}

// hasDisk makes a pool believe in a filesystem of that size.
func hasDisk(p *Pool, total, free int64) {
	p.disk = func() (physical, error) { return physical{total, free}, nil }
}

func TestNoSpace(t *testing.T) {
	s, p := newSet(t, func(o *Options) { o.Overcommit, o.Reserve = 1, gib })
	hasDisk(p, 20*gib, 20*gib)
	ctx := t.Context()
	before, err := p.Capacity(ctx)
	if err != nil || before.Committed != 0 || before.Available > before.Total-gib || before.Available < gib || before.Maximum != 64<<40 {
		t.Fatalf("%+v, %v", before, err)
	}
	_, err = s.CreateVolume(ctx, Spec{Name: "large", Size: 2 * before.Available})
	wantErr(t, "more than there is", err, ErrNoSpace, "pool p", boundPolicy)
	if se, ok := errors.AsType[*SpaceError](err); !ok || se.Have <= 0 || se.Want <= se.Have {
		t.Fatalf("%v", err)
	}
	v, err := s.CreateVolume(ctx, Spec{Name: "v", Size: before.Available * 3 / 4})
	if err != nil {
		t.Fatal(err)
	}
	after, err := p.Capacity(ctx)
	if err != nil || after.Available > before.Available/2 || after.Committed < v.Size {
		t.Fatalf("%+v, %v", after, err)
	}
	_, err = s.Resize(ctx, v.ID, v.Size+before.Available)
	wantErr(t, "growth", err, ErrNoSpace)
	_, err = s.CreateVolume(ctx, Spec{Name: "w", Size: before.Available})
	wantErr(t, "a second", err, ErrNoSpace)
	if err := s.DeleteVolume(ctx, v.ID); err != nil {
		t.Fatal(err)
	}
	create(t, s, "w")
	audit(t, p)
}

// TestFixedNeedsSpace: what a fixed image takes is bounded by real free space,
// however generous the policy.
func TestFixedNeedsSpace(t *testing.T) {
	s, p := newSet(t)
	hasDisk(p, 20*gib, 10*gib)
	c, err := p.Capacity(t.Context())
	if err != nil || c.AvailableFixed >= c.Available {
		t.Fatalf("%+v, %v", c, err)
	}
	spec := Spec{Name: "v", Size: 2 * c.AvailableFixed, Params: Params{Fixed: true}}
	_, err = s.CreateVolume(t.Context(), spec)
	wantErr(t, "fixed", err, ErrNoSpace, boundFree)
	spec.Params.Fixed = false
	if _, err = s.CreateVolume(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	audit(t, p)
}

// TestRealENOSPC fills a small filesystem: creation says ErrNoSpace and leaves
// nothing, and deletion still works.
func TestRealENOSPC(t *testing.T) {
	r := newPowerRig(t)
	s, p := openSet(t, r.pool)
	defer s.Close()
	ctx := t.Context()
	v := create(t, s, "v")
	var err error
	for i := 0; err == nil; i++ {
		_, err = s.CreateVolume(ctx, Spec{Name: fmt.Sprint("w", i), Size: gib})
	}
	wantErr(t, "a full filesystem", err, ErrNoSpace, "filesystem")
	fillUp(t, filepath.Join(r.pool, dirTemp, ".tmp-ballast"))
	_, err = s.CreateVolume(ctx, Spec{Name: "x", Size: gib})
	wantErr(t, "a filled up filesystem", err, ErrNoSpace)
	if _, err := p.tree.Stat(fileBallast); err != nil {
		t.Fatalf("creations have thrown the ballast off: %v", err)
	}
	if st, err := p.tree.Statfs(); err != nil || st.Bavail > 1 {
		t.Fatalf("%d blocks are free, %v", st.Bavail, err)
	}
	if err := s.SetUse(ctx, v.ID, UseMounted); err != nil {
		t.Fatalf("a record in a full filesystem: %v", err)
	}
	fillUp(t, filepath.Join(r.pool, dirTemp, ".tmp-more"))
	if err := s.DeleteVolume(ctx, v.ID); err == nil {
		t.Fatal("the test is too kind: nothing had to be thrown off")
	}
	os.Remove(filepath.Join(r.pool, dirTemp, ".tmp-more"))
	if err := s.DeleteVolume(ctx, v.ID); err != nil {
		t.Fatalf("a deletion in a full filesystem: %v", err)
	}
	create(t, s, "y")
	audit(t, p)
}

func fillUp(t *testing.T, name string) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for buf := make([]byte, 1<<20); len(buf) > 0; {
		if _, err := f.Write(buf); err != nil {
			buf = buf[:len(buf)/2]
		}
	}
}

// TestTwoControllersShareTheRoom is I-POOL-8: creations at the same time through
// two pools never promise more than there is.
func TestTwoControllersShareTheRoom(t *testing.T) {
	dir := memDir(t)
	s1, p := openSet(t, dir)
	s2, _ := openSet(t, dir)
	room := 5 * footprint(gib, Params{})
	for _, q := range []*Pool{p, s2.Pools()[0]} {
		q.overcommit = 1
		hasDisk(q, room, room)
	}
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			s := []*Set{s1, s2}[i%2]
			_, err := s.CreateVolume(t.Context(), Spec{Name: fmt.Sprint("v", i), Size: gib})
			if err != nil && !errors.Is(err, ErrNoSpace) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	vols, _, err := s1.List(t.Context(), "", 0)
	if err != nil || len(vols) != 5 {
		t.Fatalf("I-POOL-8: %d volumes, room for 5, %v", len(vols), err)
	}
	audit(t, p)
}

// TestDeadReservation: what a dead creation has reserved does not make the pool
// look full.
func TestDeadReservation(t *testing.T) {
	s, p := newSet(t)
	v, err := s.CreateVolume(t.Context(), Spec{Name: "dead", Size: gib})
	if err != nil {
		t.Fatal(err)
	}
	unborn(t, p, v)
	p.overcommit = 1
	room := footprint(gib, Params{}) * 3 / 2
	hasDisk(p, room, room)
	create(t, s, "v")
	audit(t, p)
}
