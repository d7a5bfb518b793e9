package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	passed  = `{"Action":"run","Package":"m/p","Test":"TestA"}` + "\n" + `{"Action":"pass","Package":"m/p","Test":"TestA","Elapsed":0.1}` + "\n"
	skipped = `{"Action":"run","Package":"m/p","Test":"TestS"}
{"Action":"output","Package":"m/p","Test":"TestS","Output":"=== RUN   TestS\n"}
{"Action":"output","Package":"m/p","Test":"TestS","Output":"    s_test.go:7: no /dev/fuse here\n"}
{"Action":"output","Package":"m/p","Test":"TestS","Output":"--- SKIP: TestS (0.00s)\n"}
{"Action":"skip","Package":"m/p","Test":"TestS","Elapsed":0}
`
	ranAfterAll = `{"Action":"pass","Package":"m/p","Test":"TestS","Elapsed":0}` + "\n"
	failed      = `{"Action":"output","Package":"m/p","Test":"TestF","Output":"    f_test.go:9: got 1, want 2\n"}
{"Action":"fail","Package":"m/p","Test":"TestF","Elapsed":0.2}
{"Action":"fail","Package":"m/p","Elapsed":0.3}
`
	noBuild = `{"ImportPath":"m/p [m/p.test]","Action":"build-output","Output":"p.go:3: undefined: x\n"}
{"ImportPath":"m/p [m/p.test]","Action":"build-fail"}
{"Action":"fail","Package":"m/p","Elapsed":0,"FailedBuild":"m/p [m/p.test]"}
`
	panicked = `{"Action":"run","Package":"m/p","Test":"TestP"}
{"Action":"output","Package":"m/p","Test":"TestP","Output":"panic: index out of range\n"}
{"Action":"fail","Package":"m/p","Elapsed":0.3}
`
	attr = `{"Action":"attr","Package":"m/p","Test":"TestA","Key":"images","Value":"100000"}` + "\n"
)

func TestReport(t *testing.T) {
	allowS := []allowance{{"p", "Test?", "no FUSE in this container"}}
	for _, c := range []struct {
		name   string
		events string
		list   []allowance
		strict bool
		want   error
		prints string
	}{
		{"pass", passed, nil, true, nil, "1 passed, 0 failed, 0 skipped\n"},
		{"a passing test's attribute is shown", attr + passed, nil, true, nil, "m/p TestA: images: 100000\n"},
		{"skip, not strict", passed + skipped, nil, false, nil, "skipped: m/p TestS: s_test.go:7: no /dev/fuse here\n"},
		{"skip, strict", passed + skipped, nil, true, errSkips, "1 passed, 0 failed, 1 skipped\n"},
		{"skip, strict, allowed", passed + skipped, allowS, true, nil, "skipped, allowed: m/p TestS: no FUSE in this container\n"},
		{"skip in one step, run in another", skipped + ranAfterAll, nil, true, nil, "1 passed, 0 failed, 0 skipped\n"},
		{"fail", passed + failed, nil, false, errFailed, "got 1, want 2\n"},
		{"fail outweighs an earlier pass", passed + strings.ReplaceAll(failed, "TestF", "TestA"), nil, false, errFailed, "0 passed, 1 failed, 0 skipped\n"},
		{"does not build", passed + noBuild, nil, false, errFailed, "p.go:3: undefined: x\n"},
		{"panic cuts a test off", passed + panicked, nil, false, errFailed, "CUT OFF: m/p TestP\npanic: index out of range\n"},
		{"nothing ran", "", nil, false, errNone, "0 passed, 0 failed, 0 skipped\n"},
		{"only skips", skipped, allowS, true, errNone, "0 passed, 0 failed, 1 skipped\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var w strings.Builder
			a := newAccount(&w)
			if err := a.read(strings.NewReader(c.events)); err != nil {
				t.Fatalf("read: %v", err)
			}
			if err := a.report(&w, c.list, c.strict); !errors.Is(err, c.want) {
				t.Errorf("report = %v, want %v", err, c.want)
			}
			if !strings.Contains(w.String(), c.prints) {
				t.Errorf("printed:\n%s\nwant in it: %q", w.String(), c.prints)
			}
		})
	}
}

func TestReadAllowed(t *testing.T) {
	got, err := readAllowed("testdata/allowed.txt")
	if err != nil {
		t.Fatalf("readAllowed: %v", err)
	}
	want := []allowance{{"pkg/blockdev/fuseloop", "TestAttach/no_*", "needs a kernel that forbids io_uring"}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(allowance{})); diff != "" {
		t.Fatalf("allowed skips (-want +got):\n%s", diff)
	}
	for _, c := range []struct {
		pkg, test string
		want      bool
	}{
		{"example.org/m/pkg/blockdev/fuseloop", "TestAttach/no_ring", true},
		{"example.org/m/pkg/blockdev/fuseloop", "TestAttach", false},
		{"example.org/m/pkg/blockdev", "TestAttach/no_ring", false},
	} {
		if got := got[0].covers(name{c.pkg, c.test}); got != c.want {
			t.Errorf("covers(%s %s) = %v, want %v", c.pkg, c.test, got, c.want)
		}
	}
	if _, err := readAllowed("testdata/no-reason.txt"); err == nil {
		t.Error("a line without a reason was taken")
	}
}
