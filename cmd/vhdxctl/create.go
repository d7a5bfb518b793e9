package main

import (
	"context"
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
	cmd := &cobra.Command{
		Use:   "create PATH SIZE",
		Short: "Create an image",
		Long: `Create an image of SIZE at PATH, which must not exist.

A dynamic image takes space as it is written. A fixed one takes all of it now
and can never run out. The image appears under its name only when it is
complete and on the medium.

Block and log sizes that are off are rounded up, as qemu-img does, and that is told.`,
		Example: `  vhdxctl create disk.vhdx 10G
  vhdxctl create --fixed disk.vhdx 500M
  vhdxctl create --block-size 1M --logical-sector-size 4096 disk.vhdx 2T`,
		Args: cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			size, err := parseSize(args[1])
			if err != nil {
				return err
			}
			o.Size, o.BlockSize, o.LogSize = size, int64(block), int64(log)
			return a.create(ctx, args[0], o, quiet)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.Fixed, "fixed", false, "allocate all space now")
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
	o = made.Options
	a.print(createResult{
		Path: path, VirtualSize: o.Size, Fixed: o.Fixed, BlockSize: o.BlockSize, LogSize: o.LogSize,
		LogicalSectorSize: o.LogicalSectorSize, PhysicalSectorSize: o.PhysicalSectorSize,
		Creator: o.Creator, Adjusted: append([]string{}, made.Adjusted...),
	}, func(w io.Writer) {
		for _, s := range made.Adjusted {
			fmt.Fprintf(w, "note: %s\n", s)
		}
		fmt.Fprintf(w, "%s: created, %s, %s, blocks of %s\n", path, kind(o.Fixed), exactSize(o.Size), formatSize(o.BlockSize))
	})
	return nil
}

func kind(fixed bool) string {
	if fixed {
		return "fixed"
	}
	return "dynamic"
}
