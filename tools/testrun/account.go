package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// event is one line of `go test -json`; see `go doc test2json` and, for builds,
// `go help buildjson`.
type event struct {
	Action      string
	Package     string
	ImportPath  string
	Test        string
	Elapsed     float64
	Output      string
	FailedBuild string
	Key, Value  string // of t.Attr
}

// name identifies a test over all steps. Test is empty for a package's own events.
type name struct{ pkg, test string }

type verdict struct {
	passed, failed, skipped bool
	reason                  string // of the skip
}

// account is what became of every test over all steps.
type account struct {
	w        io.Writer
	verdicts map[name]*verdict
	output   map[name][]string // of tests that have not ended
	builds   map[string][]string
	broken   []string // packages that failed outside of any test
	running  map[name]time.Time
	slow     []slowTest
	beat     time.Time
	now      func() time.Time
}

type slowTest struct {
	name    name
	seconds float64
}

// Quiet for longer than this, and the tests that run are named.
const heartbeat = time.Minute

func newAccount(w io.Writer) *account {
	return &account{
		w:        w,
		verdicts: map[name]*verdict{},
		output:   map[name][]string{},
		builds:   map[string][]string{},
		running:  map[name]time.Time{},
		now:      time.Now,
		beat:     time.Now(),
	}
}

func (a *account) read(r io.Reader) error {
	s := bufio.NewScanner(r)
	s.Buffer(nil, 16<<20) // a test's line of output can be long
	for s.Scan() {
		var e event
		if err := json.Unmarshal(s.Bytes(), &e); err != nil {
			fmt.Fprintf(a.w, "%s\n", s.Bytes()) // not from the test runner: show it as it is
			continue
		}
		a.take(e)
	}
	return s.Err()
}

func (a *account) take(e event) {
	n := name{e.Package, e.Test}
	switch e.Action {
	case "run":
		a.running[n] = a.now()
	case "output":
		a.output[n] = append(a.output[n], e.Output)
		a.heartbeat()
	case "attr":
		a.printf("    \t%s %s: %s: %s\n", e.Package, e.Test, e.Key, e.Value)
	case "build-output":
		a.builds[e.ImportPath] = append(a.builds[e.ImportPath], e.Output)
	case "pass", "fail", "skip":
		a.ended(n, e)
	}
}

func (a *account) ended(n name, e event) {
	out := a.output[n]
	delete(a.output, n)
	delete(a.running, n)
	if n.test == "" {
		a.packageEnded(e, out)
		return
	}
	v := a.verdicts[n]
	if v == nil {
		v = &verdict{}
		a.verdicts[n] = v
	}
	switch e.Action {
	case "pass":
		v.passed = true
	case "skip":
		v.skipped, v.reason = true, skipReason(out)
	case "fail":
		v.failed = true
		a.printf("--- FAIL: %s %s (%.1fs)\n%s", n.pkg, n.test, e.Elapsed, strings.Join(out, ""))
	}
	if e.Elapsed >= 1 && !strings.Contains(n.test, "/") {
		a.slow = append(a.slow, slowTest{n, e.Elapsed})
	}
}

func (a *account) packageEnded(e event, out []string) {
	switch e.Action {
	case "fail":
		a.broken = append(a.broken, e.Package)
		a.printf("FAIL\t%s\t%.1fs\n%s%s", e.Package, e.Elapsed, strings.Join(a.builds[e.FailedBuild], ""), strings.Join(out, ""))
		a.printUnended(e.Package)
	case "skip":
		a.printf("?   \t%s\t[no test files]\n", e.Package)
	default:
		a.printf("ok  \t%s\t%.1fs\n", e.Package, e.Elapsed)
	}
}

// printUnended shows the tests that a package's end (panic, timeout) cut off.
func (a *account) printUnended(pkg string) {
	for n, out := range a.output {
		if n.pkg != pkg || n.test == "" {
			continue
		}
		a.verdicts[n] = &verdict{failed: true}
		a.printf("--- CUT OFF: %s %s\n%s", n.pkg, n.test, strings.Join(out, ""))
		delete(a.output, n)
		delete(a.running, n)
	}
}

func (a *account) printf(format string, args ...any) {
	fmt.Fprintf(a.w, format, args...)
	a.beat = a.now()
}

// heartbeat names a test that runs while nothing else is to be said.
func (a *account) heartbeat() {
	if a.now().Sub(a.beat) < heartbeat {
		return
	}
	var first name
	for n, since := range a.running {
		if first == (name{}) || since.Before(a.running[first]) {
			first = n
		}
	}
	if first != (name{}) {
		a.printf("    \t%s %s running for %s\n", first.pkg, first.test, a.now().Sub(a.running[first]).Round(time.Second))
	}
}

// skipReason is what t.Skip said: the last line that is not the runner's own.
func skipReason(out []string) string {
	for _, line := range slices.Backward(out) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "---") && !strings.HasPrefix(line, "===") {
			return line
		}
	}
	return "no reason given"
}

func (a *account) failed() bool {
	if len(a.broken) > 0 {
		return true
	}
	for _, v := range a.verdicts {
		if v.failed {
			return true
		}
	}
	return false
}

var (
	errFailed      = errors.New("tests failed")
	errInterrupted = errors.New("interrupted")
	errNone        = errors.New("no test ran")
	errSkips       = errors.New("tests were skipped that are not on the list of allowed skips")
)
