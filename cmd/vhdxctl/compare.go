package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/disk"
)

// compareResult is what compare prints as JSON.
type compareResult struct {
	Identical bool `json:"identical"`
	// FirstDifference is the offset of the first byte that differs; null if
	// none does.
	FirstDifference *int64   `json:"firstDifference"`
	Sizes           [2]int64 `json:"sizes"`
}

type compareOptions struct {
	formats [2]string
	strict  bool
	quiet   bool
	workers int
}

func (a *app) compareCommand(ctx context.Context) *cobra.Command {
	var o compareOptions
	cmd := &cobra.Command{
		Use:   "compare FIRST SECOND",
		Short: "Compare two disks",
		Long: `Compare what two disks hold: VHDX images of any type, raw files or block devices.
Where one is longer, its rest must be zero; with -s sizes must be equal too.
What both sides know to be zero is not read.

Exit codes: 0 the same; 1 different; 2 the comparison could not be made.`,
		Example: `  vhdxctl compare disk.raw disk.vhdx
  vhdxctl compare -s before.vhdx after.vhdx
  vhdxctl compare --json disk.vhdx /dev/vg/lv`,
		Args: cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.compare(ctx, [2]string{args[0], args[1]}, o)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.formats[0], "format", "f", "", "format of the first, raw or vhdx (default: found by looking)")
	f.StringVarP(&o.formats[1], "second-format", "F", "", "format of the second")
	f.BoolVarP(&o.strict, "strict", "s", false, "different sizes are a difference")
	f.IntVarP(&o.workers, "workers", "m", 0, "reads at once, 1 to 64 (default 4)")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print nothing but errors")
	f.BoolP("progress", "p", false, "")
	f.Lookup("progress").Hidden = true // a terminal gets it in any case
	return cmd
}

func (a *app) compare(ctx context.Context, names [2]string, o compareOptions) (err error) {
	if err := errors.Join(checkFormat("--format", o.formats[0]), checkFormat("--second-format", o.formats[1])); err != nil {
		return err
	}
	var sides [2]opened
	for i, name := range names {
		if sides[i], err = a.openSource(name, o.formats[i]); err != nil {
			return err
		}
		defer sides[i].Close()
	}
	r := compareResult{Sizes: [2]int64{sides[0].Size(), sides[1].Size()}}
	same := r.Sizes[0] == r.Sizes[1]
	if same || !o.strict {
		bar := a.progress(ctx, o.quiet, "comparing")
		at, err := disk.Compare(ctx, sides[0], sides[1], disk.CompareOptions{Workers: o.workers, Progress: bar.report})
		bar.end()
		if err != nil {
			return err
		}
		if r.Identical = at < 0; !r.Identical {
			r.FirstDifference = &at
		}
	}
	if !o.quiet {
		a.print(r, func(w io.Writer) { r.print(w, names, o.strict && !same) })
	}
	if !r.Identical {
		return exitError(exitDifferent)
	}
	return nil
}

func (r compareResult) print(w io.Writer, names [2]string, sizesCount bool) {
	if r.Sizes[0] != r.Sizes[1] {
		fmt.Fprintf(w, "sizes differ: %s has %s, %s has %s\n", names[0], exactSize(r.Sizes[0]), names[1], exactSize(r.Sizes[1]))
	}
	switch {
	case r.Identical:
		fmt.Fprintln(w, "Images are identical.")
	case !sizesCount:
		fmt.Fprintf(w, "Content mismatch at offset %d (%#x)!\n", *r.FirstDifference, *r.FirstDifference)
	}
}
