package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// resizeResult is what resize prints as JSON.
type resizeResult struct {
	Path         string `json:"path"`
	PreviousSize int64  `json:"previousSize"`
	VirtualSize  int64  `json:"virtualSize"`
}

type resizeOptions struct {
	shrink, cutData bool
}

func (a *app) resizeCommand() *cobra.Command {
	var o resizeOptions
	cmd := &cobra.Command{
		Use:   "resize PATH SIZE",
		Short: "Make an image's disk larger or smaller",
		Long: `Make the virtual disk of an image larger or smaller: to SIZE, or by it with a plus
or minus sign. A log is replayed first.

New space reads zero; a fixed image takes it now. What is on the disk keeps its
size: grow partitions and filesystems inside afterwards.

A disk is made smaller with --shrink alone, and only if nothing but zeros would
be cut off: shrink filesystems and partitions inside first. --cut-data cuts off
what is there. The file becomes shorter by itself, or with vhdxctl compact.

Children of the image no longer open once its size has changed.`,
		Example: `  vhdxctl resize disk.vhdx 20G
  vhdxctl resize disk.vhdx +512M
  vhdxctl resize --shrink disk.vhdx 10G
  vhdxctl resize --shrink disk.vhdx -1G`,
		Args: cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := a.resize(args[0], args[1], o)
			if err != nil {
				return err
			}
			a.print(r, r.print)
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.shrink, "shrink", false, "allow a smaller size")
	f.BoolVar(&o.cutData, "cut-data", false, "with --shrink: cut off data too")
	return cmd
}

// negative is a size that would be taken for an option.
var negative = regexp.MustCompile(`^-[0-9]+[A-Za-z]*$`)

// sizesLast puts resize's sizes that begin with a minus sign behind all options.
func sizesLast(args []string) []string {
	if !slices.Contains(args, "resize") {
		return args
	}
	var rest, sizes []string
	for i, arg := range args {
		switch {
		case arg == "--":
			return append(append(rest, args[i:]...), sizes...)
		case negative.MatchString(arg):
			sizes = append(sizes, arg)
		default:
			rest = append(rest, arg)
		}
	}
	if len(sizes) == 0 {
		return rest
	}
	return append(append(rest, "--"), sizes...)
}

// sizeFrom reads a size, or one relative to now.
func sizeFrom(arg string, now int64) (int64, error) {
	digits := strings.TrimLeft(arg, "+-")
	n, err := parseSize(digits)
	switch {
	case err != nil:
		return 0, err
	case len(arg) > len(digits)+1:
		return 0, fmt.Errorf("size %q: want one sign at most", arg)
	case arg[0] == '+':
		return min(n, math.MaxInt64-now) + now, nil
	case arg[0] == '-' && n >= now:
		return 0, fmt.Errorf("size %s: the disk has only %s", arg, exactSize(now))
	case arg[0] == '-':
		return now - n, nil
	}
	return n, nil
}

func (a *app) resize(path, arg string, o resizeOptions) (resizeResult, error) {
	im, err := a.openImage(path, vhdx.OpenOptions{})
	if err != nil {
		return resizeResult{}, err
	}
	r := resizeResult{Path: path, PreviousSize: im.Size()}
	size, err := sizeFrom(arg, r.PreviousSize)
	switch {
	case err != nil:
	case size < r.PreviousSize && !o.shrink:
		err = fmt.Errorf("%s: its disk has %s, more than %s: %w", path, exactSize(r.PreviousSize), exactSize(size), errShrink)
	default:
		err = im.Resize(size, vhdx.ResizeOptions{CutData: o.cutData})
	}
	r.VirtualSize = im.Size()
	return r, errors.Join(err, im.Close())
}

var errShrink = errors.New("it would become smaller")

func (r resizeResult) print(w io.Writer) {
	verb := "grown"
	switch {
	case r.VirtualSize == r.PreviousSize:
		fmt.Fprintf(w, "%s: has %s already\n", r.Path, exactSize(r.VirtualSize))
		return
	case r.VirtualSize < r.PreviousSize:
		verb = "shrunk"
	}
	fmt.Fprintf(w, "%s: %s from %s to %s\n", r.Path, verb, formatSize(r.PreviousSize), exactSize(r.VirtualSize))
}
