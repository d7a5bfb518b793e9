package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// poolSnapshot is a snapshot as snapshots prints it.
type poolSnapshot struct {
	ID          string           `json:"id"`
	Name        string           `json:"name"`
	Volume      string           `json:"volume"`
	Group       string           `json:"group,omitempty"`
	Size        int64            `json:"size"`
	Bytes       int64            `json:"bytes"`
	Created     time.Time        `json:"created"`
	Consistency pool.Consistency `json:"consistency"`
	Image       string           `json:"image"`
}

func (a *app) poolSnapshots(ctx context.Context, p *poolAccess) *cobra.Command {
	return &cobra.Command{
		Use:   "snapshots",
		Short: "List the snapshots of a pool",
		Long: `List the snapshots of a pool: id (the snapshotHandle of the
VolumeSnapshotContent), the volume it is of, the size of the disk, and the image
that it is. That image is never written; what is below it belongs to it
(vhdxctl chain IMAGE).`,
		Example: `  vhdxctl pool snapshots --pool /srv/vhdx
  vhdxctl pool snapshots --pool /srv/vhdx --json | jq -r '.[].id'`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			all := []poolSnapshot{}
			err := p.do(ctx, func(s *pool.Set) error {
				for token := ""; ; {
					page, next, err := s.Snapshots(ctx, pool.SnapshotFilter{}, token, 0)
					for _, x := range page {
						all = append(all, poolSnapshot{x.ID, x.Name, x.Volume, x.Group, x.Size, x.Bytes, x.Created, x.Consistency, x.Image})
					}
					if err != nil || next == "" {
						return err
					}
					token = next
				}
			})
			if err != nil {
				return err
			}
			a.print(all, func(w io.Writer) { printSnapshots(w, all) })
			return nil
		},
	}
}

func printSnapshots(w io.Writer, all []poolSnapshot) {
	if len(all) == 0 {
		fmt.Fprintln(w, "no snapshots")
		return
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "SNAPSHOT\tNAME\tVOLUME\tSIZE\tCREATED\tIMAGE")
	for _, x := range all {
		fmt.Fprintf(t, "%s\t%q\t%s\t%s\t%s\t%s\n", x.ID, x.Name, x.Volume, formatSize(x.Size), x.Created.UTC().Format(time.RFC3339), x.Image)
	}
	_ = t.Flush() // w's errors are the terminal's
}

const poolExportLong = `Copy a snapshot, or a volume that nobody has open, into one VHDX that stands
alone: dynamic, or with --fixed fixed. The volume of the snapshot may be in use
meanwhile. A volume that is in use itself is refused: take a snapshot of it, and
export that.

The copy is made as vhdxctl convert makes it: what reads zero is left out, and
where the filesystem can share blocks nothing is copied.`

func (a *app) poolExport(ctx context.Context, p *poolAccess) *cobra.Command {
	var o convertOptions
	cmd := &cobra.Command{
		Use:   "export ID TARGET",
		Short: "Copy a snapshot or a volume into a VHDX that stands alone",
		Long:  poolExportLong,
		Example: `  vhdxctl pool export --pool /srv/vhdx default-5d41402abc4b2a76b9719d911017c592-0f343b0931126a20 /backup/data.vhdx
  vhdxctl pool export --pool /srv/vhdx --fixed --no-sparse $(kubectl get vsc NAME -o jsonpath='{.status.snapshotHandle}') /mnt/hyper-v/data.vhdx`,
		Args: cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			image := ""
			err := p.do(ctx, func(s *pool.Set) (err error) {
				image, err = imageOf(ctx, s, args[0])
				return err
			})
			if err != nil {
				return err
			}
			o.sourceFormat, o.format = formatVHDX, formatVHDX
			if err := o.complete(nil); err != nil {
				return err
			}
			return a.convert(ctx, image, args[1], o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.create.Fixed, "fixed", false, "make a fixed VHDX")
	f.BoolVar(&o.overwrite, "overwrite", false, "replace an existing file")
	f.BoolVar(&o.resume, "resume", false, "keep an interrupted copy, and go on with one")
	f.BoolVar(&o.noSparse, "no-sparse", false, "give the new file all of its space: Windows refuses sparse images")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "no progress bar")
	return cmd
}

// imageOf is the image of a snapshot or of a volume.
func imageOf(ctx context.Context, s *pool.Set, id string) (string, error) {
	snap, err := s.Snapshot(ctx, id)
	if err == nil && snap.Taken {
		return snap.Image, nil
	}
	if err != nil && !errors.Is(err, pool.ErrNoSnapshot) {
		return "", err
	}
	v, err := s.Volume(ctx, id)
	if errors.Is(err, pool.ErrNotFound) {
		err = fmt.Errorf("%.128q is neither a snapshot nor a volume of the pool; `vhdxctl pool snapshots` and `vhdxctl pool list` name them", id)
	}
	return v.Image, err
}
