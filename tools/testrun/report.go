package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
)

// allowance is one line of the list of allowed skips.
type allowance struct{ pkg, pattern, reason string }

// readAllowed reads lines of "package test-pattern reason"; # begins a comment.
func readAllowed(file string) ([]allowance, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var list []allowance
	for i, text := range strings.Split(string(content), "\n") {
		fields := strings.Fields(text)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if len(fields) < 3 {
			return nil, fmt.Errorf("%s:%d: want package, test and reason", file, i+1)
		}
		if _, err := path.Match(fields[1], ""); err != nil {
			return nil, fmt.Errorf("%s:%d: pattern %q: %w", file, i+1, fields[1], err)
		}
		list = append(list, allowance{fields[0], fields[1], strings.Join(fields[2:], " ")})
	}
	return list, nil
}

func (l allowance) covers(n name) bool {
	if n.pkg != l.pkg && !strings.HasSuffix(n.pkg, "/"+l.pkg) {
		return false
	}
	ok, _ := path.Match(l.pattern, n.test) // the pattern was tried when it was read
	return ok
}

// report prints the account and says whether the run stands.
func (a *account) report(w io.Writer, list []allowance, strict bool) error {
	passed, failed := 0, 0
	var skipped []name
	for n, v := range a.verdicts {
		switch {
		case v.failed:
			failed++
		case v.passed:
			passed++
		default:
			skipped = append(skipped, n)
		}
	}
	failed = max(failed, len(a.broken))
	refused := printSkips(w, a, skipped, list)
	a.printSlowest(w, 10)
	if len(a.broken) > 0 {
		fmt.Fprintf(w, "failed: %s\n", strings.Join(a.broken, " "))
	}
	fmt.Fprintf(w, "%d passed, %d failed, %d skipped\n", passed, failed, len(skipped))
	switch {
	case failed > 0:
		return errFailed
	case passed == 0:
		return errNone
	case refused > 0 && strict:
		return errSkips
	}
	return nil
}

// printSkips lists the skipped tests and returns how many are not allowed.
func printSkips(w io.Writer, a *account, skipped []name, list []allowance) int {
	slices.SortFunc(skipped, func(x, y name) int {
		return cmp.Or(strings.Compare(x.pkg, y.pkg), strings.Compare(x.test, y.test))
	})
	refused := 0
	for _, n := range skipped {
		i := slices.IndexFunc(list, func(l allowance) bool { return l.covers(n) })
		if i >= 0 {
			fmt.Fprintf(w, "skipped, allowed: %s %s: %s\n", n.pkg, n.test, list[i].reason)
			continue
		}
		refused++
		fmt.Fprintf(w, "skipped: %s %s: %s\n", n.pkg, n.test, a.verdicts[n].reason)
	}
	return refused
}

func (a *account) printSlowest(w io.Writer, most int) {
	slices.SortFunc(a.slow, func(x, y slowTest) int { return cmp.Compare(y.seconds, x.seconds) })
	for i, s := range a.slow {
		if i == most {
			break
		}
		fmt.Fprintf(w, "slow: %6.1fs %s %s\n", s.seconds, s.name.pkg, s.name.test)
	}
}

// asRoot is what makes `go test` run the test binaries as root: they mount,
// attach loop devices and open /dev/fuse. The compiler stays an ordinary user.
func asRoot() []string {
	if os.Geteuid() == 0 {
		return nil
	}
	return []string{"-exec", "sudo -E env PATH=" + os.Getenv("PATH")}
}
