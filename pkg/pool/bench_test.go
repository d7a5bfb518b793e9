package pool

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// crowd is how many synthetic records a benchmark's pool has.
var crowd = []int{10, 100_000}

// fill writes n synthetic records, past the pool.
func fill(tb testing.TB, dir string, n int) *Set {
	tb.Helper()
	s, p := openSet(tb, dir)
	p.overcommit = 1e6 // the policy would refuse that many
	for i := range n {
		r := newRecord(p, Spec{Name: fmt.Sprint("synthetic-", i), Size: gib})
		b, err := r.encode()
		if err != nil {
			tb.Fatal(err)
		}
		name := filepath.Join(dir, p.recordPath(r.id.hash))
		if err := os.WriteFile(name, b, 0o600); err != nil {
			err = errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, b, 0o600))
			if err != nil {
				tb.Fatal(err)
			}
		}
	}
	if _, err := p.recountNow(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	return s
}

// BenchmarkPool shows that no operation's time grows with the number of volumes
// (I-POOL-13). Each iteration works on volumes of its own.
func BenchmarkPool(b *testing.B) {
	for _, n := range crowd {
		s := fill(b, b.TempDir(), n)
		ctx := b.Context()
		var ids []string
		b.Run(fmt.Sprintf("create/volumes=%d", n), func(b *testing.B) {
			for b.Loop() {
				v, err := s.CreateVolume(ctx, Spec{Name: fmt.Sprint("made-", len(ids)), Size: gib})
				if err != nil {
					b.Fatal(err)
				}
				ids = append(ids, v.ID)
			}
		})
		b.Run(fmt.Sprintf("get/volumes=%d", n), func(b *testing.B) {
			for b.Loop() {
				if _, err := s.Volume(ctx, ids[0]); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("list page of 10/volumes=%d", n), func(b *testing.B) {
			token := ""
			for b.Loop() {
				_, next, err := s.List(ctx, token, 10)
				if err != nil {
					b.Fatal(err)
				}
				token = next
			}
		})
		b.Run(fmt.Sprintf("capacity/volumes=%d", n), func(b *testing.B) {
			for b.Loop() {
				if _, err := s.Pools()[0].Capacity(ctx); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("delete/volumes=%d", n), func(b *testing.B) {
			for b.Loop() {
				if len(ids) == 0 {
					b.StopTimer()
					v, err := s.CreateVolume(ctx, Spec{Name: "more", Size: gib})
					if err != nil {
						b.Fatal(err)
					}
					ids = append(ids, v.ID)
					b.StartTimer()
				}
				if err := s.DeleteVolume(ctx, ids[len(ids)-1]); err != nil {
					b.Fatal(err)
				}
				ids = ids[:len(ids)-1]
			}
		})
	}
}

// TestScale prints the same figures from a fixed number of rounds, and checks
// what a benchmark does not: how many changes to the pool and files read an
// operation costs must be the same for 10 and for 100,000 volumes.
func TestScale(t *testing.T) {
	sizes := crowd
	if testing.Short() {
		sizes = []int{10, 2000}
	}
	const rounds = 20
	var steps [2][3]int
	for i, n := range sizes {
		dir := memDir(t)
		fill(t, dir, n).Close()
		count := 0
		p, err := open(Options{Name: "p", Dir: dir, Overcommit: 1000}, func(string, string) error { count++; return nil })
		if err != nil {
			t.Fatal(err)
		}
		p.overcommit = 1e6
		s, err := NewSet(p)
		if err != nil {
			t.Fatal(err)
		}
		// The first ones meet directories that this process has not seen.
		for r := range rounds {
			create(t, s, fmt.Sprint("warm-", r))
		}
		var ids []string
		times := [3]time.Duration{}
		measure := func(what int, fn func(r int)) {
			for r := range rounds {
				before, start := count, time.Now()
				fn(r)
				times[what] += time.Since(start)
				steps[i][what] += count - before
			}
		}
		measure(0, func(r int) { ids = append(ids, create(t, s, fmt.Sprint("made-", r)).ID) })
		token := ""
		measure(1, func(int) {
			_, next, err := s.List(t.Context(), token, 10)
			if err != nil {
				t.Fatal(err)
			}
			token = next
		})
		measure(2, func(r int) {
			if err := s.DeleteVolume(t.Context(), ids[r]); err != nil {
				t.Fatal(err)
			}
		})
		s.Close()
		for what, name := range []string{"create", "list-page-of-10", "delete"} {
			t.Attr(fmt.Sprintf("%s-with-%d-volumes", name, n), fmt.Sprintf("%v, %d changes", (times[what]/rounds).Round(time.Microsecond), steps[i][what]/rounds))
		}
	}
	for what, name := range []string{"create", "list page", "delete"} {
		// A shard that a volume is the first in costs two changes more.
		if a, b := steps[0][what]/rounds, steps[1][what]/rounds; b > a {
			t.Errorf("I-POOL-13: %s costs %d changes with %d volumes and %d with %d", name, a, sizes[0], b, sizes[1])
		}
	}
}
