package pool

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestOrder compares the changes that each operation makes, in their order,
// with testdata/order.txt: every barrier of I-POOL-2 and I-POOL-5 is a line there.
func TestOrder(t *testing.T) {
	var out strings.Builder
	for _, sc := range scenarios {
		if sc.name == "delete then create again" || sc.name == "import chain, repeated" {
			continue
		}
		fmt.Fprintf(&out, "%s:\n%s\n", sc.name, strings.Join(trace(t, sc), "\n"))
	}
	golden := filepath.Join("testdata", "order.txt")
	if *update {
		if err := os.WriteFile(golden, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), out.String()); d != "" {
		t.Fatalf("the order of changes differs (-golden +now):\n%s", d)
	}
}

var (
	uuidPattern  = regexp.MustCompile(`[0-9a-f]{2}/[0-9a-f]{8}-[0-9a-f-]{27}`)
	childPattern = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f-]{27}`)
	hashPattern  = regexp.MustCompile(`[0-9a-f]{2}/[0-9a-f]{32}`)
	tempPattern  = regexp.MustCompile(`\.tmp-[0-9a-f]{32}`)
	shardOnly    = regexp.MustCompile(`/[0-9a-f]{2}$`)
)

// trace is the steps of a scenario, without what differs from run to run.
// Repeated lines are told once.
func trace(t *testing.T, sc scenario) (steps []string) {
	dir := memDir(t)
	armed := false
	p, err := open(Options{Name: "p", Dir: dir, Overcommit: 1000, Holder: "n1"}, func(op, path string) error {
		if !armed {
			return nil
		}
		path = strings.TrimPrefix(path, dir+"/")
		path = uuidPattern.ReplaceAllString(path, "XX/IMAGE")
		path = childPattern.ReplaceAllString(path, "IMAGE")
		path = hashPattern.ReplaceAllString(path, "XX/NAME")
		path = tempPattern.ReplaceAllString(path, "TEMP")
		path = shardOnly.ReplaceAllString(path, "/XX")
		if sc.long && (op == "mkdir" || slices.Contains(directories, path)) {
			return nil // two images may lie in one shard, by chance
		}
		if line := "  " + op + " " + path; len(steps) == 0 || steps[len(steps)-1] != line {
			steps = append(steps, line)
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
	if _, err := p.recountNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	id, err := sc.prepare(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	armed = true
	if err := sc.run(t.Context(), s, id); err != nil {
		t.Fatal(err)
	}
	return steps
}
