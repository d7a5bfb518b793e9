package deathpoint

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A point that stands in no code is never reached, and nobody would notice.
func TestEveryPointStandsInTheCode(t *testing.T) {
	used := map[string]int{}  // calls of Reach, by the point
	steps := map[string]int{} // of pkg/node, by name
	use := regexp.MustCompile(`deathpoint\.Reach\(deathpoint\.(\w+)\)`)
	step := regexp.MustCompile(`m\.step\("([^"]+)"\)`)
	calls := map[string]int{}
	const root = "../.."
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && strings.HasPrefix(d.Name(), ".") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range use.FindAllSubmatch(b, -1) {
			used[string(m[1])]++
		}
		for _, m := range step.FindAllSubmatch(b, -1) {
			steps[string(m[1])]++
		}
		for _, call := range []string{"deathpoint.Helper", "deathpoint.Node"} {
			calls[call] += strings.Count(string(b), call)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("points.go")
	if err != nil {
		t.Fatal(err)
	}
	table := regexp.MustCompile(`(?m)^\t(\w+): +(nodePrefix \+ |helperPrefix \+ |)"(.*)"`).FindAllSubmatch(source, -1)
	if want := len(All()); len(table) != want {
		t.Fatalf("%d names for %d points", len(table), want)
	}
	for _, m := range table {
		switch point, name := string(m[1]), string(m[3]); {
		case len(m[2]) == 0 && used[point] == 0:
			t.Errorf("no call of Reach(%s)", point)
		case strings.HasPrefix(string(m[2]), "node") && steps[name] == 0:
			t.Errorf("no step %q in pkg/node", name)
		}
	}
	if calls["deathpoint.Helper"] == 0 || calls["deathpoint.Node"] == 0 {
		t.Errorf("calls: %v", calls)
	}
}

func TestNamesAreUnique(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range All() {
		if p.String() == "" || seen[p.String()] {
			t.Errorf("point %d is named %q", p, p)
		}
		seen[p.String()] = true
	}
	if End.String() != "no point" {
		t.Errorf("End is %q", End)
	}
}

func TestPageCountsDown(t *testing.T) {
	path := filepath.Join(t.TempDir(), "page")
	mine, err := CreatePage(path)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := OpenPage(path)
	if err != nil {
		t.Fatal(err)
	}
	var died []int
	for i := range 5 {
		if i == 1 {
			mine.Arm(Applied, 3)
		}
		if theirs.reach(EntryWritten) {
			t.Fatal("dies where nothing is armed")
		}
		if theirs.reach(Applied) {
			died = append(died, i)
		}
	}
	if diff := cmp.Diff([]int{3}, died); diff != "" {
		t.Errorf("deaths (-want +got):\n%s", diff)
	}
	if d := mine.Last(); d.Number != 1 || d.At != Applied || d.When <= 0 || d.When > Now() || d.PID != os.Getpid() {
		t.Errorf("last death: %+v", d)
	}
	if mine.Hits(Applied) != 5 || mine.Hits(EntryWritten) != 5 || mine.Hits(Applying) != 0 {
		t.Errorf("hits: %d, %d, %d", mine.Hits(Applied), mine.Hits(EntryWritten), mine.Hits(Applying))
	}
	if mine.Disarm() {
		t.Error("it was disarmed by the death")
	}
	mine.Arm(Applied, 1)
	if !mine.Disarm() || theirs.reach(Applied) {
		t.Error("dies after it was disarmed")
	}
}

func TestOneDeathArmsTheNext(t *testing.T) {
	p, err := CreatePage(filepath.Join(t.TempDir(), "page"))
	if err != nil {
		t.Fatal(err)
	}
	p.ArmThen(ResumeDone, 1)
	p.Arm(Applied, 1)
	if p.reach(ResumeDone) {
		t.Error("dies out of turn")
	}
	if !p.reach(Applied) || !p.reach(ResumeDone) || p.reach(ResumeDone) || p.reach(Applied) {
		t.Error("wants each once, in turn")
	}
	p.ArmThen(ResumeDone, 1)
	p.Arm(Applied, 1)
	if !p.Disarm() || p.Disarm() || p.reach(Applied) || p.reach(ResumeDone) {
		t.Error("disarming leaves something")
	}
}

func TestNoPage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "page")
	if err := os.WriteFile(path, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenPage(path); err == nil {
		t.Error("takes a file of 5 bytes")
	}
	if _, err := CreatePage(path); err == nil {
		t.Error("takes a file that is there")
	}
}
