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

const poolExportLong = `Copy a snapshot or a volume into one VHDX that stands alone: dynamic, or with
--fixed fixed. The volume of the snapshot may be in use meanwhile.

A volume that is in use is copied as it is at the beginning: a snapshot is taken,
by the node that has the volume open, and deleted at the end, also on an error or
Ctrl-C. What a kill leaves, the driver deletes after a day. --consistency
filesystem, the default, has what is mounted synced and frozen for that moment;
with crash, and of raw volumes, the copy is as after a power cut. This machine must
reach the node as the controller does, at the address in the node's record.

The copy is made as vhdxctl convert makes it: what reads zero is left out, and
where the filesystem can share blocks nothing is copied.

Exit codes: 0 done; 1 it could not be done; 4 the node that has the volume open
does not answer: nothing is copied, and it can be tried again.`

func (a *app) poolExport(ctx context.Context, p *poolAccess) *cobra.Command {
	var o convertOptions
	e := export{app: a, access: p}
	cmd := &cobra.Command{
		Use:   "export ID TARGET",
		Short: "Copy a snapshot or a volume into a VHDX that stands alone",
		Long:  poolExportLong,
		Example: `  vhdxctl pool export --pool /srv/vhdx default-5d41402abc4b2a76b9719d911017c592-0f343b0931126a20 /backup/data.vhdx
  vhdxctl pool export --pool /srv/vhdx --consistency crash VOLUME /backup/data.vhdx
  vhdxctl pool export --pool /srv/vhdx --fixed --no-sparse $(kubectl get vsc NAME -o jsonpath='{.status.snapshotHandle}') /mnt/hyper-v/data.vhdx`,
		Args: cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			o.sourceFormat, o.format = formatVHDX, formatVHDX
			if err := errors.Join(o.complete(nil), e.check()); err != nil {
				return err
			}
			return e.run(ctx, args[0], args[1], o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&e.consistency, "consistency", string(pool.ConsistentFilesystem), "of a volume in use: filesystem, or crash, which freezes nothing")
	f.BoolVar(&o.create.Fixed, "fixed", false, "make a fixed VHDX")
	f.BoolVar(&o.overwrite, "overwrite", false, "replace an existing file")
	f.BoolVar(&o.resume, "resume", false, "keep an interrupted copy, and go on with one; not of a volume in use")
	f.BoolVar(&o.noSparse, "no-sparse", false, "give the new file all of its space: Windows refuses sparse images")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "no progress bar")
	return cmd
}
