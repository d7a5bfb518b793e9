// Command chaos kills the server of mounted and raw volumes again and again
// while they are written without flushes, and reads everything back after each
// kill. It needs root and the plugin's binary.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	var o options
	flag.StringVar(&o.plugin, "plugin", "bin/vhdx-csi", "the plugin's `binary`")
	flag.IntVar(&o.kills, "kills", 1000, "how often to kill the server")
	flag.StringVar(&o.dir, "dir", "", "where pool and state go; empty: a new temporary directory")
	flag.Int64Var(&o.live, "live", 48<<20, "`bytes` each volume holds on to, all of which are read back after each kill")
	flag.DurationVar(&o.pause, "pause", 120*time.Millisecond, "the longest time between the end of one gap and the next kill")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := mainErr(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

func mainErr(ctx context.Context, o options) error {
	if o.dir == "" {
		dir, err := os.MkdirTemp("", "vhdx-chaos-")
		if err != nil {
			return err
		}
		o.dir = dir
	}
	dir, err := filepath.Abs(o.dir)
	if err != nil {
		return err
	}
	o.dir = dir
	result, err := run(ctx, o)
	result.print(os.Stdout)
	return err
}
