// Command bench-image measures vhdxctl against qemu-img 7.2 on the same files
// in one run: creation, conversion, check, allocating and random writes, log
// replay. It needs qemu-img, and root for the 64 TiB image on a loop-mounted
// XFS; without root that line is left out, and that is told.
//
// The two take turns, round by round, because machines drift; a ratio compares
// figures of one round, and the median round counts. Before each measurement
// the caches of the files that it reads are dropped and the filesystem is
// synced. qemu-img convert is run as users run it, with no flush at the end;
// vhdxctl syncs what it made before it returns. What qemu-img leaves unwritten
// is told apart.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
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
	short   bool
	only    *regexp.Regexp
	calm    time.Duration
}

func main() {
	var o options
	var only string
	flag.StringVar(&o.dir, "dir", os.TempDir(), "measure on the file system of this `directory`, which needs 20 GiB of room")
	flag.StringVar(&o.vhdxctl, "vhdxctl", "bin/vhdxctl", "the `program` to measure")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds; the median counts; lines that take minutes have one")
	flag.BoolVar(&o.short, "short", false, "small sizes, to see that it works: the figures mean nothing")
	flag.StringVar(&only, "only", "", "measure only lines whose name matches this `regexp`")
	flag.DurationVar(&o.calm, "calm", 0, "before each measurement wait this long at most for idle processors")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	var err error
	if o.only, err = regexp.Compile(only); err == nil {
		err = run(ctx, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-image:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	if o.vhdxctl, err = filepath.Abs(o.vhdxctl); err != nil {
		return err
	}
	for _, program := range []string{o.vhdxctl, "qemu-img"} {
		if _, err := exec.LookPath(program); err != nil {
			return err
		}
	}
	b := &bench{o: o}
	if b.dir, err = os.MkdirTemp(o.dir, "bench-image-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.unmount(context.WithoutCancel(ctx)), os.RemoveAll(b.dir)) }()
	began := time.Now()
	t := &table{}
	for _, l := range b.lines() {
		if !o.only.MatchString(l.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s ...\n", l.name)
		r, err := b.measure(ctx, l)
		if err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
		t.rows = append(t.rows, r)
	}
	t.print(os.Stdout)
	fmt.Printf("\n%.0f s, %d rounds", time.Since(began).Seconds(), o.rounds)
	if o.short {
		fmt.Print(", SMALL SIZES: the figures mean nothing")
	}
	fmt.Println(".")
	return nil
}
