package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/spf13/cobra"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// growResult is what grow prints as JSON.
type growResult struct {
	Path         string `json:"path"`
	PreviousSize int64  `json:"previousSize"`
	VirtualSize  int64  `json:"virtualSize"`
}

func (a *app) growCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "grow PATH SIZE",
		Short: "Make an image's disk larger",
		Long: `Make the virtual disk of an image larger: to SIZE, or by it with a plus sign.
The new space reads zero. A fixed image takes the space now. What is on the
disk keeps its size: grow partitions and filesystems inside afterwards.

A disk never shrinks. A log is replayed first.`,
		Example: `  vhdxctl grow disk.vhdx 20G
  vhdxctl grow disk.vhdx +512M`,
		Args: cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := a.grow(args[0], args[1])
			if err != nil {
				return err
			}
			a.print(r, r.print)
			return nil
		},
	}
}

func (a *app) grow(path, arg string) (growResult, error) {
	digits, relative := strings.CutPrefix(arg, "+")
	size, err := parseSize(digits)
	if err != nil {
		return growResult{}, err
	}
	im, err := a.openImage(path, vhdx.OpenOptions{})
	if err != nil {
		return growResult{}, err
	}
	r := growResult{Path: path, PreviousSize: im.Size()}
	if relative {
		size = min(size, math.MaxInt64-r.PreviousSize) + r.PreviousSize
	}
	if size < r.PreviousSize {
		err = fmt.Errorf("%s: its disk has %s, more than %s, and a disk never shrinks: make a smaller image and copy what is on the disk",
			path, exactSize(r.PreviousSize), exactSize(size))
	} else {
		err = im.Grow(size)
	}
	r.VirtualSize = im.Size()
	return r, errors.Join(err, im.Close())
}

func (r growResult) print(w io.Writer) {
	if r.VirtualSize == r.PreviousSize {
		fmt.Fprintf(w, "%s: has %s already\n", r.Path, exactSize(r.VirtualSize))
		return
	}
	fmt.Fprintf(w, "%s: grown from %s to %s\n", r.Path, formatSize(r.PreviousSize), exactSize(r.VirtualSize))
}
