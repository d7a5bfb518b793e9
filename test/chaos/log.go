package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
)

// What a plugin that only dies by others' hands never logs: a race, a crash of
// its own, a worker that ended by itself.
var (
	crashed  = regexp.MustCompile(`^(WARNING: DATA RACE|panic: |fatal error: |unexpected fault address)`)
	ended    = regexp.MustCompile(`"Worker ended, starts anew".* cause="([^"]*)"`)
	byOthers = regexp.MustCompile(`^(signal: killed|no heartbeat for |dying: )`)
)

// ownFailures finds in a plugin's log what was nobody else's doing.
func ownFailures(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var errs []error
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		if m := ended.FindStringSubmatch(line); crashed.MatchString(line) || m != nil && !byOthers.MatchString(m[1]) {
			errs = append(errs, fmt.Errorf("the plugin failed by itself, line %d of its log: %s", n, strings.TrimSpace(line)))
		}
	}
	if len(errs) > 5 {
		errs = append(errs[:5], fmt.Errorf("and %d more", len(errs)-5))
	}
	return errors.Join(append(errs, lines.Err())...)
}
