package supervisor

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Each worker is told how many went before it, and how the last of them ended.
func TestWorkersKnowTheirPredecessors(t *testing.T) {
	v := start(t, setup{Heartbeat: 400 * time.Millisecond})
	if got := v.ask("history"); got != `[0 0 0], 0, killed, "", false` {
		t.Fatalf("the first worker hears of %s", got)
	}
	for _, c := range []struct{ how, want string }{
		{"kill", `[1 0 0], 1, killed, "signal: killed", true`},
		{"exit 3", `[1 1 0], 2, failed, "exit status 3", true`},
		{"hang", `[1 1 1], 3, hung, "no heartbeat for`},
	} {
		v.ask(c.how)
		v.restart()
		if got := v.ask("history"); !strings.HasPrefix(got, c.want) {
			t.Fatalf("after %q: %s, want %s", c.how, got, c.want)
		}
	}
}

// What a worker counts goes on with its successor.
func TestTallies(t *testing.T) {
	v := start(t, setup{})
	for i := range 3 {
		for k := range 2 {
			if got, want := v.ask("count"), fmt.Sprint(2*i+k+1); got != want {
				t.Fatalf("worker %d counts %s, want %s", i+1, got, want)
			}
		}
		v.ask("kill")
		v.restart()
	}
	var l *Link
	if n := l.Tally(0).Add(1); n != 1 {
		t.Fatal(n)
	}
	if end := offTallies + 8*Tallies; end > pageSize || offTallies%8 != 0 {
		t.Fatalf("the tallies lie from %d to %d of %d", offTallies, end, pageSize)
	}
}

func TestHistoryInAPage(t *testing.T) {
	for _, want := range []History{
		{},
		{Ends: [Kinds]uint64{1, 2, 1 << 40}, Last: Hung, Cause: "no heartbeat for 10s", At: 5 * time.Second},
	} {
		p := make(page, pageSize)
		p.putHistory(want)
		if d := cmp.Diff(want, p.history()); d != "" {
			t.Fatal(d)
		}
	}
	p := make(page, pageSize)
	p.putHistory(History{Cause: strings.Repeat("x", 1000)})
	if got := p.history().Cause; len(got) != maxCause {
		t.Fatalf("a cause of %d bytes", len(got))
	}
	if end := offHistory + historyCause + 4 + maxCause; end > pageSize {
		t.Fatalf("the history ends at %d, the page at %d", end, pageSize)
	}
	var l *Link
	if d := cmp.Diff(History{}, l.History()); d != "" {
		t.Fatal(d)
	}
}
