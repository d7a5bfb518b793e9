// Command bench-image measures vhdxctl against qemu-img 7.2 on the same files
// in one run: creation, conversion, check, open, allocating and random writes,
// log replay; and what QEMU's driver cannot do (layers, merge, compact)
// against plain cp or a single layer. It needs qemu-img, and root for the
// 64 TiB images on a loop-mounted XFS; without root those lines are left out,
// and that is told. It prints Markdown, or JSON.
//
// What makes the comparison fair:
//   - Both are processes, timed from start to end by the wall clock, on files in
//     one directory, in turns: who begins changes each round, because machines
//     drift. A ratio compares figures of one round; the median round counts.
//   - Before each, the files that it reads are dropped from the page cache and
//     every filesystem is synced.
//   - vhdxctl leaves what it made on the medium, its name included. qemu-img and
//     cp do not: the sync that brings them as far is timed apart, shown, and
//     counted in the ratio; the ratio without it stands beside.
//   - qemu-img convert runs with its defaults (eight requests, page cache), and
//     once more with what suits it best on a disk as fast as this one: 16
//     requests out of order, no page cache.
//   - Requests go with qemu-img bench -t none -i native against vhdxctl bench:
//     both bypass the page cache, and both flush at the same intervals.
//   - What qemu-img and vhdxctl wrote is checked with qemu-img after the first
//     round.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"time"

	"golang.org/x/sys/unix"
)

type options struct {
	dir     string
	vhdxctl string
	rounds  int
	quick   bool
	json    bool
	only    *regexp.Regexp
	calm    time.Duration
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == plainCommand {
		if err := plain(os.Args[2:], os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "bench-image:", err)
			os.Exit(1)
		}
		return
	}
	var o options
	var only string
	flag.StringVar(&o.dir, "dir", os.TempDir(), "measure on the file system of this `directory`, which needs 35 GiB of room")
	flag.StringVar(&o.vhdxctl, "vhdxctl", "bin/vhdxctl", "the `program` to measure")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds; the median counts; four times as many for what takes milliseconds, one for what takes minutes")
	flag.BoolVar(&o.quick, "quick", false, "small sizes, to see that it works: the figures mean nothing")
	flag.BoolVar(&o.json, "json", false, "print JSON")
	flag.StringVar(&only, "only", "", "measure only lines whose name matches this `regexp`")
	flag.DurationVar(&o.calm, "calm", 0, "before each measurement wait this long at most for idle processors")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	var err error
	if o.only, err = regexp.Compile(only); err == nil {
		err = run(ctx, o, os.Stdout, os.Stderr)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-image:", err)
		os.Exit(1)
	}
}

// run measures all lines and prints them to out; notes goes what happens
// meanwhile. Nothing of it is left behind, whatever the error.
func run(ctx context.Context, o options, out, notes io.Writer) (err error) {
	if o.vhdxctl, err = filepath.Abs(o.vhdxctl); err != nil {
		return err
	}
	for _, program := range []string{o.vhdxctl, "qemu-img"} {
		if _, err := exec.LookPath(program); err != nil {
			return err
		}
	}
	b := &bench{o: o}
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp(o.dir, "bench-image-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.unmount(context.WithoutCancel(ctx)), os.RemoveAll(b.dir)) }()
	began := time.Now()
	r := &report{Machine: machine(ctx, b.dir), Began: began.UTC().Format(time.RFC3339), Rounds: o.rounds, Quick: o.quick, LoadFrom: load()}
	for _, l := range b.lines() {
		if !o.only.MatchString(l.name) {
			continue
		}
		fmt.Fprintf(notes, "%4.0f s: %s\n", time.Since(began).Seconds(), l.name)
		row, err := b.measure(ctx, l)
		if err != nil {
			return fmt.Errorf("%s: %w", l.name, errors.Join(err, context.Cause(ctx)))
		}
		r.Results = append(r.Results, row.result())
	}
	r.Seconds, r.LoadTo = time.Since(began).Seconds(), load()
	if o.json {
		return r.printJSON(out)
	}
	return r.print(out)
}
