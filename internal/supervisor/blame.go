package supervisor

import (
	"maps"
	"slices"
	"time"
)

// maxMarks bounds how many ids are remembered: those that a page holds.
const maxMarks = slots

// backoff is how long to wait after so many failures in a row.
func backoff(failures int) time.Duration {
	steps := [...]time.Duration{0, 0, 10 * time.Millisecond, 100 * time.Millisecond, time.Second}
	if failures < len(steps) {
		return steps[failures]
	}
	return 5 * time.Second
}

// strike counts one for each of ids. Where there are too many, those with the
// fewest strikes go first.
func (s *supervisor) strike(ids []string) {
	for _, id := range ids {
		s.strikes[id]++
	}
	for over := len(s.strikes) - maxMarks; over > 0; over-- {
		least := slices.MinFunc(slices.Collect(maps.Keys(s.strikes)), func(a, b string) int {
			return int(s.strikes[a]) - int(s.strikes[b])
		})
		delete(s.strikes, least)
	}
}

// quarantined lists who has had enough strikes.
func (s *supervisor) quarantined() []string {
	var ids []string
	for id, n := range s.strikes {
		if n >= MaxStrikes {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// forgive forgets strikes, and ends quarantine too if all is set.
func (s *supervisor) forgive(all bool) {
	forgiven := func(n uint32) bool { return all || n < MaxStrikes }
	maps.DeleteFunc(s.strikes, func(_ string, n uint32) bool { return forgiven(n) })
	if s.worker == nil {
		return
	}
	s.worker.page.marked(func(off int, _ string, n uint32) {
		if forgiven(n) {
			s.worker.page.word(off).Store(0)
		}
	})
}
