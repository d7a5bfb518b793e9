package events

import (
	"os"
	"strings"
	"testing"
)

// Each reason has its line on the reference page.
func TestReasonsDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/reference/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range Reasons {
		if !strings.Contains(string(b), "| `"+string(r)+"` |") {
			t.Errorf("docs/reference/metrics.md has no line for %s", r)
		}
	}
}
