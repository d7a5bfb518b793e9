package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// compactResult is what compact prints as JSON.
type compactResult struct {
	Path             string `json:"path"`
	ZeroBlocks       int64  `json:"zeroBlocks"`  // lost their space: they held only zeros
	MovedBlocks      int64  `json:"movedBlocks"` // lie further down now
	PreviousFileSize int64  `json:"previousFileSize"`
	FileSize         int64  `json:"fileSize"`
}

func (a *app) compactCommand(ctx context.Context) *cobra.Command {
	var quiet, keep bool
	cmd := &cobra.Command{
		Use:   "compact PATH",
		Short: "Make an image's file as short as it can be",
		Long: `Make the file of an image as short as its data allows: blocks that hold only
zeros lose their space, those at the end move to where there is room, and the
rest is cut off. What the disk shows does not change, and its children stay valid.

Ctrl-C leaves a consistent image, compacted in part; so does a power cut.`,
		Example: `  vhdxctl compact disk.vhdx
  vhdxctl compact --json disk.vhdx | jq .fileSize`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := a.compact(ctx, args[0], keep, quiet)
			if errors.Is(err, context.Canceled) && r.FileSize > 0 {
				err = fmt.Errorf("%w: %w", errCompactedInPart, err)
			}
			if err != nil {
				return err
			}
			a.print(r, r.print)
			return nil
		},
	}
	cmd.Flags().BoolVar(&keep, "keep-zeros", false, "do not read all data in search of blocks that hold only zeros")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "no progress bar")
	return cmd
}

var errCompactedInPart = errors.New("compacted in part")

func (a *app) compact(ctx context.Context, path string, keep, quiet bool) (compactResult, error) {
	im, err := a.openImage(path, vhdx.OpenOptions{})
	if err != nil {
		return compactResult{}, err
	}
	bar := a.progress(ctx, quiet, "compacting")
	c, err := im.Compact(ctx, vhdx.CompactOptions{KeepZeroes: keep, Progress: func(done, total int64) {
		_ = bar.report(done, total) // ctx ends it
	}})
	bar.end()
	return compactResult{path, c.Zeroes, c.Moved, c.SizeBefore, c.SizeAfter}, errors.Join(err, im.Close())
}

func (r compactResult) print(w io.Writer) {
	fmt.Fprintf(w, "%s: %s of zeros freed, %s moved; the file has %s, before %s\n", r.Path,
		count(int(r.ZeroBlocks), "block", "blocks"), count(int(r.MovedBlocks), "block", "blocks"), exactSize(r.FileSize), formatSize(r.PreviousFileSize))
}
