package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// checkResult is what check prints as JSON.
type checkResult struct {
	Path string `json:"path"`
	// Status is clean, dirty (the log must be replayed), replayed or corrupt.
	Status  string     `json:"status"`
	Log     *logResult `json:"log,omitempty"`
	Corrupt *corrupt   `json:"corruption,omitempty"`
}

// corrupt says what is wrong, and where.
type corrupt struct {
	Structure string `json:"structure"`
	Offset    int64  `json:"offset"`
	Reason    string `json:"reason"`
}

func (a *app) checkCommand() *cobra.Command {
	var repair string
	cmd := &cobra.Command{
		Use:   "check PATH",
		Short: "Check an image, and replay its log",
		Long: `Check an image: identifier, headers, log, region tables, metadata, block table,
and that nothing in the file overlaps anything else. The data is not read.

Without -r nothing is changed. An image that was not closed in an orderly way has
a log to replay; that is no damage, but exits with 1, since other software may
refuse the image or show it as it was before. With -r all the log is replayed.

Exit codes: 0 clean, or replayed and clean; 1 the check could not be made, or the
log must be replayed; 2 corrupt. (3 stands for leaked space, which is not looked
for yet.)`,
		Example: `  vhdxctl check disk.vhdx
  vhdxctl check -r all disk.vhdx
  vhdxctl check --json disk.vhdx`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if repair != "" && repair != "all" {
				return fmt.Errorf("--repair %s: the only repair is all", repair)
			}
			return a.check(args[0], repair != "")
		},
	}
	cmd.Flags().StringVarP(&repair, "repair", "r", "", "what to repair: all (replay the log)")
	return cmd
}

func (a *app) check(path string, repair bool) error {
	info, err := readInfo(path)
	var replayed *logResult
	if err == nil && repair && info.Replay.Entries > 0 {
		replayed = newLogResult(info.Replay)
		if err = replayLog(path); err == nil {
			info, err = readInfo(path)
		}
	}
	c, isCorrupt := errors.AsType[*vhdx.CorruptError](err)
	r := checkResult{Path: path, Status: "clean", Log: newLogResult(info.Replay)}
	code := exitOK
	switch {
	case isCorrupt:
		r.Status, r.Corrupt, code = "corrupt", &corrupt{c.Structure, c.Offset, c.Reason}, exitCorrupt
	case err != nil:
		return err
	case r.Log != nil:
		r.Status, code = "dirty", exitFailed
	case replayed != nil:
		r.Status, r.Log = "replayed", replayed
	}
	a.print(r, func(w io.Writer) { r.print(w, err) })
	if code != exitOK {
		return exitError(code)
	}
	return nil
}

// replayLog opens an image for writing, which replays its log, and changes
// nothing else.
func replayLog(path string) error {
	im, err := vhdx.OpenPath(path, vhdx.OpenOptions{})
	if err != nil {
		return err
	}
	return im.Close()
}

func (r checkResult) print(w io.Writer, err error) {
	switch r.Status {
	case "corrupt":
		fmt.Fprintf(w, "%v\n%s\n", err, advice(err))
	case "dirty":
		fmt.Fprintf(w, "%s: no errors were found, with the log applied in memory\n", r.Path)
		fmt.Fprintf(w, "The log must be replayed (%v): the next writable open does it, or run:\n  vhdxctl check -r all '%s'\n", r.Log, r.Path)
	case "replayed":
		fmt.Fprintf(w, "%s: log replayed (%v); no errors were found\n", r.Path, r.Log)
	default:
		fmt.Fprintf(w, "%s: no errors were found\n", r.Path)
	}
}
