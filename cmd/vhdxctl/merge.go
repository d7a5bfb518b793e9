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

func (a *app) mergeCommand(ctx context.Context) *cobra.Command {
	var remove, quiet bool
	cmd := &cobra.Command{
		Use:   "merge CHILD",
		Short: "Merge a differencing image into its parent",
		Long: `Put what a differencing image holds into its parent, in place. Afterwards the
parent shows what the child did, and the child, which still opens, is not needed
any more: --remove removes it. Do not remove one that has children of its own:
they name it as their parent.

Other children of the parent do not open any more: merge only an image whose
parent has no other child. To leave all images as they are, make one of the
chain with vhdxctl convert.

Ctrl-C, a power cut or an error leaves a chain that opens and shows the same. Run the
command again to go on.`,
		Example: `  vhdxctl merge snapshot.vhdx
  vhdxctl merge --remove child.vhdx
  vhdxctl chain child.vhdx    (shows which image is the parent)`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := a.merge(ctx, args[0], remove, quiet)
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
	f.BoolVar(&remove, "remove", false, "remove the child's file once it is merged")
	f.BoolVarP(&quiet, "quiet", "q", false, "no progress bar")
	return cmd
}

var (
	errMergedInPart = errors.New("merged in part")
	errNoParent     = errors.New("it has no parent")
)

func (a *app) merge(ctx context.Context, child string, remove, quiet bool) (mergeResult, error) {
	parent, err := a.parentOf(child)
	if err != nil {
		return mergeResult{}, err
	}
	bar := a.progress(ctx, quiet, "merging")
	err = vhdx.Merge(ctx, child, parent, vhdx.MergeOptions{Parents: a.parentsOf(child), Progress: bar.report})
	bar.end()
	r := mergeResult{Child: child, Parent: parent, Removed: remove}
	if err == nil && remove {
		err = os.Remove(child)
	}
	return r, err
}

// parentOf is the file that an image's parent is in.
func (a *app) parentOf(child string) (string, error) {
	im, err := a.openReadOnly(child)
	if err != nil {
		return "", err
	}
	layers := im.Layers()
	if err := im.Close(); err != nil {
		return "", err
	}
	if len(layers) < 2 {
		return "", fmt.Errorf("%s: %w", child, errNoParent)
	}
	return layers[1].File, nil
}

func (r mergeResult) print(w io.Writer) {
	fmt.Fprintf(w, "%s: merged into %s\n", r.Child, relativeTo(filepath.Dir(r.Child), r.Parent))
	if r.Removed {
		fmt.Fprintf(w, "%s: removed\n", r.Child)
	}
}
