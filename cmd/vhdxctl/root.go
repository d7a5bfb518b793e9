package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
)

// Exit codes, as users of qemu-img know them.
const (
	exitOK      = 0
	exitFailed  = 1 // the command could not do its work
	exitCorrupt = 2 // check: the image is corrupt
	exitLeaks   = 3 // check: space is lost, and nothing worse
	// exitDifferent and exitNotCompared are compare's.
	exitDifferent   = 1
	exitNotCompared = 2
	// exitUnreachable is pool export's: the node that has the volume does not answer.
	exitUnreachable = 4
)

// exitError is an error that has told all there is to tell, but for the code.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// app is what the commands share.
type app struct {
	out, errOut io.Writer
	json        bool
	parents     string // where parents may be; "": beside the image and below
}

// run runs a command line and returns the exit code.
func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	a := &app{out: out, errOut: errOut}
	root := a.rootCommand(ctx)
	root.SetArgs(sizesLast(args))
	root.SetOut(out)
	root.SetErr(errOut)
	cmd, err := root.ExecuteC()
	if code, ok := errors.AsType[exitError](err); ok {
		return int(code)
	}
	if err != nil {
		a.fail(err)
		if cmd.Name() == "compare" {
			return exitNotCompared
		}
		if errors.Is(err, control.ErrUnreachable) {
			return exitUnreachable
		}
		return exitFailed
	}
	return exitOK
}

func (a *app) rootCommand(ctx context.Context) *cobra.Command {
	root := &cobra.Command{
		Use:   "vhdxctl",
		Short: "Work with VHDX images",
		Long: `vhdxctl works with VHDX images, the disks of Hyper-V, which QEMU reads and
csi-driver-vhdx serves as volumes: it creates, converts, compares, checks and
repairs them, changes their size, and shows what is in them.

No image that another process has open is touched, and no existing file is
replaced unless that is asked for. Commands and options are named as those of
qemu-img where the two do the same.

Sizes are bytes, or carry a binary unit: 512M, 10G, 2T (also 512MiB, 10Gi). What
takes longer than a moment shows on a terminal how far it is, and Ctrl-C ends it
with a consistent image or none.

Exit codes: 0 done; 1 it could not be done; check: 2 the image is corrupt, 3 it
has lost space and nothing worse; compare: 1 different, 2 could not be compared;
pool export: 4 the node that has the volume open does not answer.`,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print JSON: results on stdout, errors on stderr")
	root.PersistentFlags().StringVar(&a.parents, "parents", "", "the `directory` in and below which parents of differencing images may be (default: the image's own)")
	root.AddCommand(
		a.attachCommand(ctx),
		a.benchCommand(ctx),
		a.chainCommand(),
		a.checkCommand(ctx),
		a.childCommand(),
		a.compactCommand(ctx),
		a.compareCommand(ctx),
		a.completionCommand(),
		a.convertCommand(ctx),
		a.createCommand(ctx),
		a.detachCommand(ctx),
		a.dumpCommand(ctx),
		a.growCommand(), //nolint:contextcheck // what it does is short, or may not be cut short
		a.infoCommand(),
		a.manCommand(),
		a.mapCommand(ctx),
		a.mergeCommand(ctx),
		a.metadataCommand(),
		a.poolCommand(ctx),
		a.replayCommand(),
		a.resizeCommand(), //nolint:contextcheck // what it does is short, or may not be cut short
	)
	for _, cmd := range root.Commands() {
		if cmd.ValidArgs == nil && cmd.ValidArgsFunction == nil {
			cmd.ValidArgsFunction = completeImages
		}
	}
	return root
}

// fail tells what went wrong and what to do next.
func (a *app) fail(err error) {
	hint := advice(err)
	if a.json {
		a.printJSON(a.errOut, struct {
			Error string `json:"error"`
			Hint  string `json:"hint,omitempty"`
		}{err.Error(), hint})
		return
	}
	fmt.Fprintf(a.errOut, "vhdxctl: %v\n", err)
	if hint != "" {
		fmt.Fprintln(a.errOut, hint)
	}
}

// print prints a result: v as JSON, or what text writes.
func (a *app) print(v any, text func(w io.Writer)) {
	if a.json {
		a.printJSON(a.out, v)
		return
	}
	text(a.out)
}

func (a *app) printJSON(w io.Writer, v any) {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		fmt.Fprintf(a.errOut, "vhdxctl: print the result: %v\n", err)
	}
}
