package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// createResult is what create prints as JSON.
type createResult struct {
	Path               string   `json:"path"`
	VirtualSize        int64    `json:"virtualSize"`
	Fixed              bool     `json:"fixed"`
	Parent             string   `json:"parent,omitempty"`
	BlockSize          int64    `json:"blockSize"`
	LogSize            int64    `json:"logSize"`
	LogicalSectorSize  int      `json:"logicalSectorSize"`
	PhysicalSectorSize int      `json:"physicalSectorSize"`
	Creator            string   `json:"creator"`
	Adjusted           []string `json:"adjusted"`
}

func (a *app) createCommand(ctx context.Context) *cobra.Command {
	var o vhdx.CreateOptions
	var block, log sizeFlag
	var quiet bool
	var parent string
	cmd := &cobra.Command{
		Use:   "create PATH [SIZE]",
		Short: "Create an image",
		Long: `Create an image of SIZE at PATH, which must not exist.

A dynamic image takes space as it is written. A fixed one takes all of it now
and can never run out. A differencing one, with --parent, shows what its parent
shows and keeps what is written to it; it needs no SIZE. The image appears under its name only when it is
complete and on the medium.

Block and log sizes that are off are rounded up, as qemu-img does, and that is told.`,
		Example: `  vhdxctl create disk.vhdx 10G
  vhdxctl create --fixed disk.vhdx 500M
  vhdxctl create --block-size 1M --logical-sector-size 4096 disk.vhdx 2T
  vhdxctl create --parent base.vhdx child.vhdx`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if len(args) == 2 {
				if o.Size, err = parseSize(args[1]); err != nil {
					return err
				}
			}
			o.BlockSize, o.LogSize = int64(block), int64(log)
			if parent == "" {
				if len(args) == 1 {
					return errors.New("accepts 2 args, received 1: without --parent an image needs a SIZE")
				}
				return a.create(ctx, args[0], o, quiet)
			}
			for _, name := range []string{"fixed", "logical-sector-size", "physical-sector-size"} {
				if cmd.Flags().Changed(name) {
					return fmt.Errorf("--%s goes not with --parent: a differencing image has its parent's sectors, and is not fixed", name)
				}
			}
			return a.child(parent, args[0], vhdx.ChildOptions{Size: o.Size, BlockSize: o.BlockSize, LogSize: o.LogSize, Creator: o.Creator})
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.Fixed, "fixed", false, "allocate all space now")
	f.StringVar(&parent, "parent", "", "make a differencing image of this `image`")
	f.Var(&block, "block-size", "unit of allocation, 1M to 256M, a power of two (default by size: 8M up to 1G, 16M up to 100G, 32M up to 32T, 64M above)")
	f.Var(&log, "log-size", "size of the log, whole MiB (default 1M)")
	f.IntVar(&o.LogicalSectorSize, "logical-sector-size", 512, "512 or 4096; QEMU reads 512 alone")
	f.IntVar(&o.PhysicalSectorSize, "physical-sector-size", 4096, "512 or 4096")
	f.StringVar(&o.Creator, "creator", "", "name of the creating software in the file, for diagnosis alone")
	f.BoolVarP(&quiet, "quiet", "q", false, "no progress bar")
	return cmd
}

func (a *app) create(ctx context.Context, path string, o vhdx.CreateOptions, quiet bool) error {
	bar := a.progress(ctx, quiet, "allocating")
	o.Progress = bar.report
	made, err := vhdx.Create(path, o)
	bar.end()
	if err != nil {
		return err
	}
	a.printCreated(path, "", made)
	return nil
}

func (a *app) printCreated(path, parent string, made vhdx.Created) {
	o := made.Options
	what := kind(o.Fixed)
	if parent != "" {
		what = "differencing, child of " + parent
	}
	a.print(createResult{
		Path: path, VirtualSize: o.Size, Fixed: o.Fixed, Parent: parent, BlockSize: o.BlockSize, LogSize: o.LogSize,
		LogicalSectorSize: o.LogicalSectorSize, PhysicalSectorSize: o.PhysicalSectorSize,
		Creator: o.Creator, Adjusted: append([]string{}, made.Adjusted...),
	}, func(w io.Writer) {
		for _, s := range made.Adjusted {
			fmt.Fprintf(w, "note: %s\n", s)
		}
		fmt.Fprintf(w, "%s: created, %s, %s, blocks of %s\n", path, what, exactSize(o.Size), formatSize(o.BlockSize))
	})
}

func kind(fixed bool) string {
	if fixed {
		return "fixed"
	}
	return "dynamic"
}
