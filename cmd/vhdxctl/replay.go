package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// replayResult is what replay prints as JSON.
type replayResult struct {
	Path string `json:"path"`
	// Log is what was replayed; null: the log was clean, and nothing was changed.
	Log *logResult `json:"log"`
}

func (a *app) replayCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "replay PATH",
		Short: "Replay the log of an image",
		Long: `Replay the log of an image that was not closed in an orderly way, which makes
it one that any software opens. What the disk shows does not change, and neither
does its identity to differencing images. A clean image is left as it is. Every
writable open does the same.`,
		Example: `  vhdxctl replay disk.vhdx
  vhdxctl replay --json disk.vhdx`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			f, err := openFile(args[0], true)
			if err != nil {
				return err
			}
			info, err := vhdx.Replay(f)
			if err := errors.Join(err, f.Close()); err != nil {
				return err
			}
			r := replayResult{Path: args[0], Log: newLogResult(info)}
			a.print(r, r.print)
			return nil
		},
	}
}

func (r replayResult) print(w io.Writer) {
	if r.Log == nil {
		fmt.Fprintf(w, "%s: the log is clean, nothing to replay\n", r.Path)
		return
	}
	fmt.Fprintf(w, "%s: log replayed (%v)\n", r.Path, r.Log)
}
