package control

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

// statuses are what CSI calls them.
var statuses = map[Status]string{StatusDegraded: "DEGRADED", StatusInaccessible: "INACCESSIBLE", StatusDataLoss: "DATA_LOSS"}

// Each condition has its row on the reference page, under a reason of its own.
func TestConditionsDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/reference/health.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, c := range Conditions {
		if row := fmt.Sprintf("| `%s` | `%s` |", statuses[c.Status], c.Reason); !strings.Contains(string(page), row) {
			t.Errorf("docs/reference/health.md has no row %s", row)
		}
		if seen[c.Reason] || !regexp.MustCompile(`^([A-Z][a-z]+)+$`).MatchString(c.Reason) {
			t.Errorf("reason %q", c.Reason)
		}
		seen[c.Reason] = true
	}
	if rows := strings.Count(string(page), "\n| `D") + strings.Count(string(page), "\n| `I"); rows != len(Conditions) {
		t.Errorf("%d rows for %d conditions", rows, len(Conditions))
	}
}

func TestBecause(t *testing.T) {
	if e := PoolFull.Because(nil); e != (Entry{StatusInaccessible, "PoolFull", ""}) {
		t.Errorf("%+v", e)
	}
	long := strings.Repeat("é", maxMessage)
	e := LogReplayFailed.Because(errors.New("x" + long))
	if len(e.Message) > maxMessage || strings.ToValidUTF8(e.Message, "") != e.Message {
		t.Errorf("%d bytes", len(e.Message))
	}
}
