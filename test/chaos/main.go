// Command chaos kills the server of mounted and raw volumes again and again
// while they are written without flushes, and reads everything back after each
// kill. `make chaos` builds and runs it.
//
// It starts the real plugin, built with the tag chaos, speaks CSI to it, and
// keeps three volumes under load: a raw one, ext4 and xfs. A fourth one comes
// and goes. The plugin's worker dies by SIGKILL at random times and at each
// point of internal/deathpoint, by SIGSTOP and the supervisor's heartbeat, by
// the kernel's out-of-memory killer, under memory pressure; with its
// supervisor, and after its keeper.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

type options struct {
	plugin string
	parent string // of the directory to work in
	kills  int
	seed   uint64
	live   int64 // bytes that each volume holds on to
	only   string
	keep   bool      // the plugin's log, after a run that ended well too
	log    io.Writer // progress and findings
}

// interrupted is the exit code of a program that Ctrl-C ended.
const interrupted = 130

func main() {
	if len(os.Args) == 3 && os.Args[1] == hogName {
		hog(os.Args[2])
	}
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	o := options{log: os.Stderr}
	var mib int64
	var asJSON bool
	flag.StringVar(&o.plugin, "plugin", filepath.Join(filepath.Dir(self), "vhdx-csi"), "the plugin's `binary`, built with -tags chaos")
	flag.IntVar(&o.kills, "kills", 1000, "how often to kill; 0 is a run without a kill")
	flag.Uint64Var(&o.seed, "seed", rand.Uint64()>>32, "of the order of kills and of what is written; when a kill strikes is chance all the same")
	flag.StringVar(&o.parent, "dir", os.TempDir(), "`directory` to work in; everything in it is removed again")
	flag.Int64Var(&mib, "live", 24, "`MiB` that each volume holds on to, all of which are read back after each kill")
	flag.StringVar(&o.only, "only", "", "only kinds of kill, or points, whose name matches this `regexp`")
	flag.BoolVar(&o.keep, "keep-log", false, "keep the plugin's log even if all is well")
	flag.BoolVar(&asJSON, "json", false, "print the result as JSON")
	flag.Usage = usage
	flag.Parse()
	if flag.NArg() > 0 {
		usage()
		os.Exit(2)
	}
	o.live = mib << 20
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	// Caught and dropped: a connection to a killed plugin raises it as well.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	r, err := chaos(ctx, o)
	if r != nil {
		report(os.Stdout, r, asJSON)
	}
	switch {
	case err == nil:
	case ctx.Err() != nil && !errors.Is(err, errDirty):
		fmt.Fprintln(os.Stderr, "chaos: interrupted; everything is cleaned up")
		os.Exit(interrupted)
	default:
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

func report(w io.Writer, r *result, asJSON bool) {
	if !asJSON {
		r.print(w)
		return
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(r.summary()) // to a terminal or a pipe; nothing is to be done about it
}

func usage() {
	fmt.Fprintln(flag.CommandLine.Output(), `chaos kills the server of volumes under load and reads everything back after
each kill. It needs root and leaves nothing behind. It fails on a single I/O
error or wrong byte. Gaps, how long I/O stood still, are printed, not judged.

  make chaos                        1,000 kills
  make chaos KILLS=100
  make chaos CHAOS_FLAGS='--seed=7 --json'
  bin/chaos/chaos --kills=50 --only='commit|apply'    some points only

Flags:`)
	flag.PrintDefaults()
}
