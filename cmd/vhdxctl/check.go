package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// checkResult is what check prints as JSON.
type checkResult struct {
	Path string `json:"path"`
	// Status is clean, leaks, dirty (the log must be replayed), unsupported or
	// corrupt: what the image is now.
	Status string `json:"status"`
	// Log is what must be, or was, replayed.
	Log *logResult `json:"log,omitempty"`
	// DryRun: findings say what a repair would do.
	DryRun bool `json:"dryRun,omitempty"`
	*vhdx.Report
}

func (a *app) checkCommand(ctx context.Context) *cobra.Command {
	var repair string
	var dryRun, quiet bool
	cmd := &cobra.Command{
		Use:   "check PATH",
		Short: "Check an image, and repair it",
		Long: `Check an image: identifier, headers, log, region tables, metadata, every entry of
the block table and sector bitmaps, that nothing in the file overlaps anything else,
that no space is lost, and that a differencing image's parents are the ones it was
made of. The data is not read.

Without -r nothing is changed. An image that was not closed in an orderly way has
a log to replay; that is no damage, but exits with 1, since other software may
refuse the image or show it as it was before.

With -r what can be mended without guessing is: the log is replayed, a bad copy of
a header or of the region table written anew, two blocks that claim one place get
a copy each, stray bits are cleared, the file's size rounded, and, once nothing is
damaged any more, lost space freed. No only copy of anything is destroyed, and a
power cut on the way does no harm. Lost space beside damage is kept until the next
repair: it may be what a damaged entry should lead to. --dry-run says what would be done.

Exit codes: 0 clean, or clean after the repair; 1 the check could not be made, or
the log must be replayed; 2 corrupt; 3 lost space and nothing worse.`,
		Example: `  vhdxctl check disk.vhdx
  vhdxctl check --dry-run disk.vhdx
  vhdxctl check -r disk.vhdx           (or, as with qemu-img: -r all)
  vhdxctl check --json disk.vhdx | jq .findings`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 2 {
				if repair == "" {
					return fmt.Errorf("accepts 1 path, received 2: %q", args)
				}
				repair, args = args[0], args[1:] // qemu-img's -r all
			}
			if repair != "" && repair != "all" {
				return fmt.Errorf("--repair %s: the only repair is all", repair)
			}
			bar := a.progress(ctx, quiet, "checking")
			defer bar.end()
			return a.check(ctx, args[0], repair != "", dryRun, bar)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&repair, "repair", "r", "", "mend what can be mended without guessing")
	f.Lookup("repair").NoOptDefVal = "all"
	f.BoolVar(&dryRun, "dry-run", false, "change nothing, and say what --repair would do")
	f.BoolVarP(&quiet, "quiet", "q", false, "no progress bar")
	return cmd
}

// openFile opens the file of an image, under the lock of whoever uses one.
func openFile(path string, write bool) (*vhdx.OSFile, error) {
	flag := os.O_RDONLY
	if write {
		flag = os.O_RDWR
	}
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return nil, err
	}
	of, err := vhdx.NewOSFile(f, vhdx.FileOptions{ReadOnly: !write, Buffered: !write})
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return of, nil
}

func (a *app) check(ctx context.Context, path string, repair, dryRun bool, bar *progress) error {
	f, err := openFile(path, repair && !dryRun)
	if err != nil {
		return err
	}
	var report *vhdx.Report
	if repair || dryRun {
		report, err = vhdx.Repair(ctx, f, vhdx.RepairOptions{DryRun: dryRun, Parents: a.parentsOf(path), Progress: bar.report, Confirm: func(r *vhdx.Report) error {
			bar.end()
			if !a.json {
				printFindings(a.out, r)
			}
			return nil
		}})
	} else {
		report, err = vhdx.Check(ctx, f, vhdx.CheckOptions{Parents: a.parentsOf(path), Progress: bar.report})
	}
	bar.end()
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	status, code := judge(report)
	r := checkResult{Path: path, Status: status, Log: newLogResult(report.Replay), DryRun: dryRun, Report: report}
	a.print(r, r.print)
	if code != exitOK {
		return exitError(code)
	}
	return nil
}

// judge says what an image is now, in a word and as an exit code.
func judge(r *vhdx.Report) (string, int) {
	if r.After != nil {
		r = r.After
	}
	switch {
	case r.Corrupt():
		return "corrupt", exitCorrupt
	case r.Stopped != "", r.Counts[vhdx.SeverityUnsupported] > 0:
		return "unsupported", exitFailed
	case r.Dirty:
		return "dirty", exitFailed
	case r.Counts[vhdx.SeverityLeak] > 0:
		return "leaks", exitLeaks
	}
	return "clean", exitOK
}

func (r checkResult) print(w io.Writer) {
	last := r.Report
	if r.After == nil {
		printFindings(w, r.Report)
	} else {
		for _, done := range r.Done {
			fmt.Fprintf(w, "done: %s\n", done)
		}
		last = r.After
		if len(last.Findings) > 0 {
			fmt.Fprintln(w, "What is left:")
			printFindings(w, last)
		}
	}
	if last.Stopped != "" {
		fmt.Fprintf(w, "The rest could not be checked: %s.\n", last.Stopped)
	}
	fmt.Fprintf(w, "%s: %s\n", r.Path, summary(last, r.Repaired))
	switch {
	case r.Status == "dirty":
		fmt.Fprintf(w, "The log must be replayed (%v): the next writable open does it, or run:\n  vhdxctl check -r all '%s'\n", r.Log, r.Path)
	case r.After == nil && r.Repairable() > 0 && r.DryRun:
		fmt.Fprintln(w, "Nothing was changed.")
	case r.After == nil && r.Repairable() > 0:
		fmt.Fprintf(w, "Nothing was changed. To mend what can be mended, run:\n  vhdxctl check -r all '%s'\n", r.Path)
	case r.Status == "corrupt" && r.After == nil:
		fmt.Fprintln(w, "Nothing was changed.")
	}
}

func printFindings(w io.Writer, r *vhdx.Report) {
	for _, f := range r.Findings {
		fmt.Fprintln(w, f)
	}
	if r.Omitted > 0 {
		fmt.Fprintf(w, "(%d more of the same kinds)\n", r.Omitted)
	}
}

// summary is the line that qemu-img's users look for.
func summary(r *vhdx.Report, repaired int64) string {
	text := "no errors were found"
	corrupt, leaks := r.Counts[vhdx.SeverityCorrupt], r.Counts[vhdx.SeverityLeak]
	switch {
	case corrupt > 0 && leaks > 0:
		text = fmt.Sprintf("%s and %s found", count(int(corrupt), "corruption", "corruptions"), count(int(leaks), "leak", "leaks"))
	case corrupt > 0:
		text = count(int(corrupt), "corruption", "corruptions") + " found"
	case leaks > 0:
		text = fmt.Sprintf("%s found, %s", count(int(leaks), "leak", "leaks"), formatSize(r.LeakedBytes))
	case r.Stopped != "":
		text = "it could not be checked to the end"
	}
	if r.Dirty {
		text += ", with the log applied in memory"
	}
	if repaired > 0 {
		text += fmt.Sprintf("; %d repaired", repaired)
	}
	return text
}
