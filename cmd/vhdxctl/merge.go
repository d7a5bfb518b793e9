package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// mergeResult is what merge prints as JSON.
type mergeResult struct {
	Child  string `json:"child"`
	Parent string `json:"parent"`
	// Removed: the child's file is gone.
	Removed bool `json:"removed"`
}

type mergeOptions struct {
	remove, force, cutData, quiet bool
}

func (a *app) mergeCommand(ctx context.Context) *cobra.Command {
	var o mergeOptions
	cmd := &cobra.Command{
		Use:   "merge CHILD",
		Short: "Merge a differencing image into its parent",
		Long: `Put what a differencing image holds into its parent, in place. Afterwards the
parent has the child's size and shows what the child did, and the child, which
still opens, is not needed any more: --remove removes it, unless it has children
of its own, which need it. They are looked for in the same places as those of
the parent.

Other children of the parent would not open any more. They are looked for beside
the parent and beside the child (*.vhdx, *.avhdx), and if there is one, nothing is
done unless you say --force. Those in other directories are not found. To leave
all images as they are, make one of the chain with vhdxctl convert.

If the child's disk is smaller than the parent's, what the parent has beyond the
child's end is gone afterwards: --cut-data allows that for more than zeros.

Ctrl-C, a power cut or an error leaves a chain that opens and shows the same. Run the
command again to go on.`,
		Example: `  vhdxctl merge snapshot.vhdx
  vhdxctl merge --remove child.vhdx
  vhdxctl chain child.vhdx    (shows which image is the parent)`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := a.merge(ctx, args[0], o)
			if errors.Is(err, context.Canceled) {
				err = fmt.Errorf("%w: %w", errMergedInPart, err)
			}
			if err != nil {
				return err
			}
			a.print(r, r.print)
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.remove, "remove", false, "remove the child's file once it is merged")
	f.BoolVar(&o.force, "force", false, "merge although other children of the parent will not open any more")
	f.BoolVar(&o.cutData, "cut-data", false, "let the parent lose data beyond the end of a smaller child")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "no progress bar")
	return cmd
}

var (
	errMergedInPart = errors.New("merged in part")
	errNoParent     = errors.New("it has no parent")
)

func (a *app) merge(ctx context.Context, child string, o mergeOptions) (mergeResult, error) {
	image, parent, err := a.withParent(child)
	if err != nil {
		return mergeResult{}, err
	}
	if o.remove {
		if err := a.refuseChildren(ctx, image, parent); err != nil {
			return mergeResult{}, err
		}
	}
	if !o.force {
		if err := a.refuseSiblings(ctx, child, parent); err != nil {
			return mergeResult{}, err
		}
	}
	bar := a.progress(ctx, o.quiet, "merging")
	err = vhdx.Merge(ctx, child, parent.File, vhdx.MergeOptions{Parents: a.parentsOf(child), CutData: o.cutData, Progress: bar.report})
	bar.end()
	r := mergeResult{Child: child, Parent: parent.File, Removed: o.remove}
	if err == nil && o.remove {
		if err = a.refuseChildren(ctx, image, parent); err == nil { // one may have been made meanwhile
			err = os.Remove(child)
		}
	}
	return r, err
}

// withParent describes an image and its parent.
func (a *app) withParent(child string) (image, parent vhdx.Layer, err error) {
	im, err := a.openReadOnly(child)
	if err != nil {
		return image, parent, err
	}
	layers := im.Layers()
	if err := im.Close(); err != nil {
		return image, parent, err
	}
	if len(layers) < 2 {
		return image, parent, fmt.Errorf("%s: %w", child, errNoParent)
	}
	return layers[0], layers[1], nil
}

func (r mergeResult) print(w io.Writer) {
	fmt.Fprintf(w, "%s: merged into %s\n", r.Child, relativeTo(filepath.Dir(r.Child), r.Parent))
	if r.Removed {
		fmt.Fprintf(w, "%s: removed\n", r.Child)
	}
}
