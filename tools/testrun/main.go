// Command testrun runs `go test` in one or more steps and accounts for every
// test: what passed, what failed, and what was skipped and why.
//
//	testrun [-allowed FILE] [-strict] 'title: go test arguments' ...
//
// A skip hides a missing tool or permission behind a green run. So a test that
// ran in none of the steps is a failure under -strict (the default when CI=true),
// unless the list of allowed skips names it with its reason.
//
// A passing test says nothing, but what it gives to t.Attr is printed: figures
// that a reader of the run should see.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	allowed := flag.String("allowed", "tools/testrun/allowed-skips.txt", "file that names the skips that are no failure")
	strict := flag.Bool("strict", os.Getenv("CI") == "true", "fail on any other skip")
	flag.Parse()
	if err := run(flag.Args(), *allowed, *strict); err != nil {
		fmt.Fprintln(os.Stderr, "testrun:", err)
		os.Exit(1)
	}
}

func run(steps []string, allowedFile string, strict bool) error {
	if len(steps) == 0 {
		return fmt.Errorf("no step given")
	}
	list, err := readAllowed(allowedFile)
	if err != nil {
		return err
	}
	// An interrupt reaches `go test` too, which ends the tests in order; this
	// process stays for the account of what has run.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	acc := newAccount(os.Stdout)
	started := time.Now()
	for _, s := range steps {
		if err := runStep(acc, s); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return errors.Join(errInterrupted, acc.report(os.Stdout, list, false))
		}
	}
	fmt.Printf("\n%s in all\n", time.Since(started).Round(time.Second))
	return acc.report(os.Stdout, list, strict)
}

// runStep feeds one `go test -json` into acc. That it failed is acc's to say.
func runStep(acc *account, step string) error {
	title, args, ok := strings.Cut(step, ":")
	if !ok {
		return fmt.Errorf("step %q is not of the form 'title: arguments'", step)
	}
	argv := slices.Concat([]string{"test"}, strings.Fields(args), []string{"-json"}, asRoot()) // -C must come first
	fmt.Printf("\n== tests, %s: go test%s\n", title, args)

	cmd := exec.Command("go", argv...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start go test: %w", err)
	}
	if err := acc.read(out); err != nil {
		return fmt.Errorf("read the output of go test: %w", err)
	}
	if err := cmd.Wait(); err != nil && !acc.failed() {
		return fmt.Errorf("go test of step %q: %w", title, err)
	}
	return nil
}
