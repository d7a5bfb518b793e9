package metrics

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the table of metrics in docs/reference/metrics.md")

// TestMetricsDocumented: the reference page has exactly the metrics there are.
func TestMetricsDocumented(t *testing.T) {
	const page = "../../docs/reference/metrics.md"
	const begin, end = "<!-- metrics: written by go test ./pkg/metrics -update -->\n", "<!-- end of metrics -->\n"
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(b), begin)
	table, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s lacks the marks around the table", page)
	}
	var want strings.Builder
	want.WriteString("| Metric | Type | Labels | From | Meaning | What to do |\n|---|---|---|---|---|---|\n")
	for _, m := range All {
		labels := ""
		for _, l := range m.Labels {
			labels += " `" + l + "`"
		}
		fmt.Fprintf(&want, "| `%s` | %s |%s | %s | %s | %s |\n", m.Name, m.Kind, cmp.Or(labels, " "), cmp.Or(m.Service, "both"), m.Help, m.Advice)
	}
	if *update {
		if err := os.WriteFile(page, []byte(head+begin+want.String()+end+tail), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := gocmp.Diff(want.String(), table); d != "" {
		t.Fatalf("run go test ./pkg/metrics -update (-want +page)\n%s", d)
	}
	if text := fmt.Sprintf("%d volumes", MaxVolumes); !strings.Contains(string(b), text) {
		t.Errorf("%s does not say %q", page, text)
	}
	if text := fmt.Sprintf("%d series", seriesEach); !strings.Contains(string(b), text) {
		t.Errorf("%s does not say %q", page, text)
	}
}
