// Command vhdx-bench measures, in one run on one machine, a VHDX served by
// this project against the same kind of image served by qemu-storage-daemon,
// and against a loop device on a raw file, which is as fast as this machine
// can be. It needs root, fio, qemu-img, qemu-storage-daemon and strace.
//
// Measurements of the three are interleaved, round by round, because machines
// drift; a ratio compares figures of one round, and the median round counts.
// After them it compares this project with and without its volatile journal.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/helper"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev/fuseloop"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/node"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

type options struct {
	dir     string
	size    int64
	rounds  int
	seconds float64
	flushes int
	journal int
	cuts    int
	only    string
	calm    time.Duration
}

func main() {
	helper.RunIfHelper(slices.Concat(fuseloop.Commands(), node.Commands())...)
	if len(os.Args) == 3 && (os.Args[1] == "serve" || os.Args[1] == "serve-journal") {
		exit(serve(os.Args[2], os.Args[1] == "serve-journal"))
	}
	var o options
	var mib int64
	flag.StringVar(&o.dir, "dir", os.TempDir(), "measure on the file system of this `directory`; a tmpfs has no direct I/O worth measuring")
	flag.Int64Var(&mib, "size", 1024, "working set in `MiB`")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds of the comparison with others, of which the median counts; 0: none")
	flag.Float64Var(&o.seconds, "seconds", 1.5, "length of one measurement")
	flag.IntVar(&o.flushes, "flushes", 1000, "flushes whose sync calls are counted; 0: none")
	flag.IntVar(&o.journal, "journal", 5, "rounds of the comparison with and without the volatile journal; 0: none")
	flag.IntVar(&o.cuts, "snapshots", 100, "snapshots whose pauses are measured, at each of two sizes; 0: none")
	flag.StringVar(&o.only, "only", "", "measure only lines whose name matches this `regexp`")
	flag.DurationVar(&o.calm, "calm", 0, "before each measurement wait this long at most for idle processors")
	flag.Parse()
	o.size = mib << 20
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	exit(run(ctx, o))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "vhdx-bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run(ctx context.Context, o options) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("loop devices need root")
	}
	dir, err := os.MkdirTemp(o.dir, "vhdx-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	o.dir = dir
	began := time.Now()
	if o.rounds > 0 {
		t, err := measure(ctx, o)
		if err != nil {
			return err
		}
		t.print(os.Stdout)
	}
	if o.flushes > 0 {
		if err := countSyncs(ctx, o, os.Stdout); err != nil {
			return err
		}
	}
	if o.journal > 0 {
		if err := journalCost(ctx, o, os.Stdout); err != nil {
			return err
		}
		if err := processorCost(os.Stdout); err != nil {
			return err
		}
	}
	if o.cuts > 0 {
		if err := snapshots(ctx, os.Stdout, dir, o.cuts); err != nil {
			return err
		}
	}
	fmt.Printf("\n%.0f s. Every VHDX was clean in qemu-img check after its measurements.\n", time.Since(began).Seconds())
	return nil
}

// serve is the server process of "ours": it serves the image at path until
// its input ends.
func serve(path string, journal bool) error {
	ctx := context.Background()
	var opts vhdx.OpenOptions
	if journal {
		j, err := newJournal()
		if err != nil {
			return err
		}
		opts.Journal = j
	}
	im, err := vhdx.OpenPath(path, opts)
	if err != nil {
		return err
	}
	a := fuseloop.New(fuseloop.Options{Note: func(_, text string) { fmt.Fprintln(os.Stderr, "vhdx-bench: note:", text) }})
	d, err := a.Attach(ctx, blockdev.Config{ID: path, Image: im})
	if err != nil {
		return errors.Join(err, im.Close())
	}
	fmt.Println(d.Path())
	_, _ = io.Copy(io.Discard, os.Stdin)
	for range 100 { // what used it may need a moment to close it
		if err = d.Detach(ctx); !errors.Is(err, blockdev.ErrBusy) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	return errors.Join(err, im.Close())
}

// line reads one line with a deadline.
func line(r io.Reader, patience time.Duration) (string, error) {
	type answer struct {
		s   string
		err error
	}
	c := make(chan answer, 1)
	go func() {
		s, err := bufio.NewReader(r).ReadString('\n')
		c <- answer{s, err}
	}()
	select {
	case a := <-c:
		return a.s, a.err
	case <-time.After(patience):
		return "", errors.New("no answer")
	}
}

func join(dir string, name string) string { return filepath.Join(dir, name) }
