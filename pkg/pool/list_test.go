package pool

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func listAll(t testing.TB, s *Set, page int) (ids []string) {
	t.Helper()
	for token, pages := "", 0; ; pages++ {
		vols, next, err := s.List(t.Context(), token, page)
		if err != nil {
			t.Fatal(err)
		}
		if page > 0 && len(vols) > page {
			t.Fatalf("a page of %d, at most %d asked", len(vols), page)
		}
		for _, v := range vols {
			ids = append(ids, v.ID)
		}
		if next == "" {
			return ids
		}
		token = next
	}
}

// twoPools has n synthetic volumes spread over two pools.
func twoPools(t testing.TB, n int) (*Set, []string) {
	t.Helper()
	_, a := newSet(t, func(o *Options) { o.Name = "zz" })
	_, b := newSet(t, func(o *Options) { o.Name = "a" })
	s, err := NewSet(a, b)
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for i := range n {
		ids = append(ids, synthetic(t, s.Pools()[i%2], fmt.Sprint("vol-", i)))
	}
	slices.Sort(ids) // of pool names without "-", ids sort as they are listed
	return s, ids
}

// synthetic links a record without an image.
func synthetic(t testing.TB, p *Pool, name string) string {
	t.Helper()
	r := newRecord(p, Spec{Name: name, Size: gib})
	if err := p.linkRecord(r); err != nil {
		t.Fatal(err)
	}
	return r.ID
}

func TestListPages(t *testing.T) {
	s, ids := twoPools(t, 60)
	for _, page := range []int{0, 1, 2, 7, 29, 30, 31, 59, 60, 61, 1000} {
		if d := cmp.Diff(ids, listAll(t, s, page)); d != "" {
			t.Fatalf("pages of %d (-want +got):\n%s", page, d)
		}
	}
	vols, token, err := s.List(t.Context(), "", 2) // as csi-sanity does: then all the rest
	if err != nil || len(vols) != 2 {
		t.Fatal(err)
	}
	rest, token, err := s.List(t.Context(), token, 0)
	if err != nil || len(rest) != 58 || token != "" {
		t.Fatalf("the rest: %d, %q, %v", len(rest), token, err)
	}
	// The order does not depend on which pool is the default.
	swapped, err := NewSet(s.Pools()[1], s.Pools()[0])
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(ids, listAll(t, swapped, 7)); d != "" {
		t.Fatalf("swapped (-want +got):\n%s", d)
	}
}

func TestListTokens(t *testing.T) {
	s, ids := twoPools(t, 8)
	v, err := parseID(ids[0])
	if err != nil {
		t.Fatal(err)
	}
	good := position{v.pool, v.hash.String()}
	if got, err := parseToken(good.token()); err != nil || got != good {
		t.Fatalf("%v, %v", got, err)
	}
	enc := base64.RawURLEncoding.EncodeToString
	for _, token := range []string{
		"invalid-token", "x", "1", "AAAA", good.token() + "x", good.token()[1:], strings.ToUpper(good.token()),
		position{v.pool, "../../x"}.token(), position{"../x", v.hash.String()}.token(), position{"other", v.hash.String()}.token(),
		position{v.pool, ""}.token(), enc([]byte("2/a/" + v.hash.String() + "/00000000")), strings.Repeat("A", 1<<16),
	} {
		if _, _, err := s.List(t.Context(), token, 1); !errors.Is(err, ErrBadToken) {
			t.Errorf("token %.40q: %v", token, err)
		}
	}
	// A token outlives the volume that it names.
	_, token, err := s.List(t.Context(), "", 3)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Pools()[0].tree.Remove(s.Pools()[0].recordPath(mustParse(t, ids[2]).hash)); err != nil {
		t.Fatal(err)
	}
	vols, _, err := s.List(t.Context(), token, 1)
	if err != nil || vols[0].ID != ids[3] {
		t.Fatalf("after %s: %v, %v; want %s", ids[2], vols, err, ids[3])
	}
}

func mustParse(t *testing.T, id string) volumeID {
	t.Helper()
	v, err := parseID(id)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestListWhileChanging is I-POOL-11: what stays is listed once, whatever comes
// and goes meanwhile.
func TestListWhileChanging(t *testing.T) {
	s, ids := twoPools(t, 40)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for w := range 2 {
		wg.Go(func() {
			p := s.Pools()[w]
			for i := 0; ctx.Err() == nil; i++ {
				name := fmt.Sprint("passing-", i%50)
				synthetic(t, p, name)
				if err := p.tree.Remove(p.recordPath(hashOf(name))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	stays := func(id string) bool { return slices.Contains(ids, id) }
	for range 20 {
		got := slices.DeleteFunc(listAll(t, s, 3), func(id string) bool { return !stays(id) })
		if d := cmp.Diff(ids, got); d != "" {
			t.Errorf("I-POOL-11 (-want +got):\n%s", d)
			break
		}
	}
	cancel()
	wg.Wait()
}

func TestListHidesDeleting(t *testing.T) {
	s, p := newSet(t)
	v := create(t, s, "v")
	r, err := p.live(mustParse(t, v.ID))
	if err != nil {
		t.Fatal(err)
	}
	r.Deleting = true
	if err := p.replaceRecord(r); err != nil {
		t.Fatal(err)
	}
	if ids := listAll(t, s, 0); len(ids) > 0 {
		t.Fatalf("listed: %v", ids)
	}
	if _, err := s.Volume(t.Context(), v.ID); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	// I-POOL-5: a creation of that name finishes the deletion first.
	if again := create(t, s, "v"); again.ID == v.ID {
		t.Fatal("the deleted volume came back")
	}
	audit(t, p)
	if left := files(t, p); len(left) != 2 {
		t.Fatalf("files: %v", left)
	}
}
