package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev/fuseloop"
)

// detachResult is what detach prints as JSON.
type detachResult struct {
	attachedResult
	// Died: the server had been killed, and what it left has been removed.
	Died bool `json:"serverDied"`
}

func (a *app) detachCommand(ctx context.Context) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "detach [PATH|DEVICE]",
		Short: "Remove the block device of an image",
		Long: `Remove the block device that attach made of an image, named by the image or the
device, and close the image. A device that is mounted or open stays: unmount it
first. Without an argument it lists what is attached.

Of a server that was killed it removes what is left; the next open of the image
replays its log.`,
		Example: `  vhdxctl detach disk.vhdx
  vhdxctl detach /dev/loop3
  vhdxctl detach`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return a.listAttached(dir)
			}
			return a.detach(ctx, dir, args[0])
		},
	}
	cmd.Flags().StringVar(&dir, "run-dir", defaultRunDir, "`directory` that attach was given")
	return cmd
}

func (a *app) listAttached(dir string) error {
	found, err := seats(dir)
	if err != nil {
		return err
	}
	all := make([]attachedResult, 0, len(found))
	for _, r := range found {
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b attachedResult) int { return strings.Compare(a.Device, b.Device) })
	a.print(all, func(w io.Writer) {
		for _, r := range all {
			fmt.Fprintf(w, "%s  %s\n", r.Device, r.Image)
		}
	})
	return nil
}

var errNotAttached = errors.New("not attached by vhdxctl")

func (a *app) detach(ctx context.Context, dir, what string) error {
	name, r, err := findSeat(dir, what)
	if err != nil {
		return err
	}
	result := detachResult{attachedResult: r}
	err = ask(name)
	if errors.Is(err, errNoServer) {
		result.Died = true
		err = fuseloop.New(fuseloop.Options{}).Teardown(ctx, idOf(name))
		for _, suffix := range []string{".json", ".sock"} {
			if rmErr := os.Remove(name + suffix); err == nil && !errors.Is(rmErr, fs.ErrNotExist) {
				err = rmErr
			}
		}
	}
	if err != nil {
		return err
	}
	a.print(result, func(w io.Writer) {
		fmt.Fprintf(w, "%s: detached from %s\n", r.Image, r.Device)
		if result.Died {
			fmt.Fprintln(w, "note: its server had died; the next open replays the log")
		}
	})
	return nil
}

// findSeat finds what is attached by its image or its device.
func findSeat(dir, what string) (string, attachedResult, error) {
	found, err := seats(dir)
	if err != nil {
		return "", attachedResult{}, err
	}
	abs, err := filepath.Abs(what)
	if err != nil {
		return "", attachedResult{}, err
	}
	if r, ok := found[seatName(dir, abs)]; ok {
		return seatName(dir, abs), r, nil
	}
	for name, r := range found {
		if r.Device == what {
			return name, r, nil
		}
	}
	return "", attachedResult{}, fmt.Errorf("%s: %w", what, errNotAttached)
}
