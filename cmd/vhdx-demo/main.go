// Command vhdx-demo shows the main job on one machine, without Kubernetes: it
// starts the plugin on a pool in a temporary directory, speaks CSI to it, and
// takes a volume through formatting, writing, a power cut, growth and deletion,
// checking the data after each turn. `make demo` runs it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

// version is stamped by the build.
var version = "dev"

// errDirty: something of the demo is still on the machine.
var errDirty = errors.New("could not clean up")

// interrupted is the exit code of a program that Ctrl-C ended.
const interrupted = 130

func main() {
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	binary := flag.String("plugin", filepath.Join(filepath.Dir(self), "vhdx-csi"), "the plugin to run")
	parent := flag.String("dir", os.TempDir(), "directory to work in; everything in it is removed again")
	showVersion := flag.Bool("version", false, "print the version")
	flag.Usage = usage
	flag.Parse()
	if flag.NArg() > 0 {
		usage()
		os.Exit(2)
	}
	if *showVersion {
		fmt.Println("vhdx-demo", version)
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	// Caught and dropped: a connection to the killed plugin raises it as well.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	switch err := run(ctx, *binary, *parent, output{os.Stdout, stop}); {
	case err == nil:
	case ctx.Err() != nil && !errors.Is(err, errDirty):
		fmt.Fprintln(os.Stderr, "vhdx-demo: interrupted; everything is cleaned up")
		os.Exit(interrupted)
	default:
		fmt.Fprintln(os.Stderr, "vhdx-demo:", err)
		os.Exit(1)
	}
}

// output ends the demo when nobody reads it any more, as in `vhdx-demo | head`.
type output struct {
	io.Writer
	stop func()
}

func (o output) Write(p []byte) (int, error) {
	n, err := o.Writer.Write(p)
	if errors.Is(err, syscall.EPIPE) {
		o.stop()
	}
	return n, err
}

func usage() {
	fmt.Fprintln(flag.CommandLine.Output(), `vhdx-demo takes one volume from creation through a power cut to deletion and
checks its data after each turn. It needs root, and leaves nothing behind.

  vhdx-demo                        with the vhdx-csi beside it
  vhdx-demo --plugin=./vhdx-csi    with another one
  vhdx-demo --dir=/mnt/share       with the pool on another filesystem

Flags:`)
	flag.PrintDefaults()
}

// run does everything between making the temporary directory and removing it.
func run(ctx context.Context, binary, parent string, out io.Writer) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("must run as root: it mounts filesystems and makes loop devices")
	}
	if _, err := os.Stat(binary); err != nil {
		return fmt.Errorf("no plugin to run: %w; build it with make build, or name it with --plugin", err)
	}
	dir, err := os.MkdirTemp(parent, "vhdx-demo-")
	if err != nil {
		return fmt.Errorf("make a directory to work in: %w", err)
	}
	d := &demo{binary: binary, dir: dir, out: out}
	err = d.run(ctx)
	if cerr := d.cleanUp(ctx); cerr != nil {
		return errors.Join(err, fmt.Errorf("%w: %w", errDirty, cerr))
	}
	if err == nil {
		d.summary()
	}
	return err
}
