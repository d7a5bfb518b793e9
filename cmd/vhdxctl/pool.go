package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// poolAccess is how the pool commands reach a pool.
type poolAccess struct {
	dir         string
	overcommit  float64
	allowUnsafe bool
}

func (a *app) poolCommand(ctx context.Context) *cobra.Command {
	var p poolAccess
	cmd := &cobra.Command{
		Use:   "pool",
		Short: "Look into a pool of volumes, and add to it",
		Long: `Work on a pool, the directory in which the driver keeps its volumes, while the
driver runs or not. The commands keep to the same locks and write orders.`,
		Example: `  vhdxctl pool list --pool /srv/vhdx
  vhdxctl pool problems --pool /srv/vhdx
  vhdxctl pool import --pool /srv/vhdx --pv hyper-v-data /srv/incoming/data.vhdx`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	f := cmd.PersistentFlags()
	f.StringVar(&p.dir, "pool", "", "the pool's `directory`")
	f.BoolVar(&p.allowUnsafe, "allow-unsafe", false, "also on a share whose mount options can lose data")
	if err := cmd.MarkPersistentFlagRequired("pool"); err != nil {
		panic(err) // the flag is defined above
	}
	cmd.AddCommand(a.poolList(ctx, &p), a.poolProblems(ctx, &p), a.poolImport(ctx, &p), a.poolSnapshots(ctx, &p), a.poolExport(ctx, &p))
	return cmd
}

// sharePatience is how long a share may take to answer.
const sharePatience = 10 * time.Second

// open opens a pool that is there.
func (p *poolAccess) open(ctx context.Context) (*pool.Set, error) {
	name, err := pool.NameOf(p.dir)
	if err != nil {
		return nil, fmt.Errorf("open pool %s: %w", p.dir, err)
	}
	// A pool that is not open by then answers every call with the reason.
	return pool.OpenSet(ctx, sharePatience, func(string, error) {},
		pool.Options{Name: name, Dir: p.dir, Overcommit: p.overcommit, AllowUnsafe: p.allowUnsafe})
}

// do runs something on the pool.
func (p *poolAccess) do(ctx context.Context, work func(*pool.Set) error) error {
	unix.Umask(0o007) // as the plugin: user and group share what is made in a pool
	s, err := p.open(ctx)
	if err != nil {
		return err
	}
	return errors.Join(work(s), s.Close())
}

// poolVolume is a volume as list and import print it.
type poolVolume struct {
	ID          string            `json:"id"`
	Name        string            `json:"name"`
	Size        int64             `json:"size"`
	Use         pool.Use          `json:"use"`
	FSType      string            `json:"fsType,omitempty"`
	Image       string            `json:"image"`
	Created     time.Time         `json:"created"`
	Attachments []pool.Attachment `json:"attachments"`
}

func volumeOf(v pool.Volume) poolVolume {
	return poolVolume{
		ID: v.ID, Name: v.Name, Size: v.Size, Use: v.Use, FSType: v.FSType, Image: v.Image, Created: v.Created,
		Attachments: append([]pool.Attachment{}, v.Attachments...),
	}
}

func (a *app) poolList(ctx context.Context, p *poolAccess) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the volumes of a pool",
		Long: `List the volumes of a pool: id (the volumeHandle of the PersistentVolume), size,
where it is attached, and its image.`,
		Example: `  vhdxctl pool list --pool /srv/vhdx
  vhdxctl pool list --pool /srv/vhdx --json | jq -r '.[] | select(.attachments == []) | .id'`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			vols := []poolVolume{}
			err := p.do(ctx, func(s *pool.Set) error {
				for token := ""; ; {
					page, next, err := s.List(ctx, token, 0)
					for _, v := range page {
						vols = append(vols, volumeOf(v))
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
			a.print(vols, func(w io.Writer) { printVolumes(w, vols) })
			return nil
		},
	}
}

func printVolumes(w io.Writer, vols []poolVolume) {
	if len(vols) == 0 {
		fmt.Fprintln(w, "no volumes")
		return
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "VOLUME\tNAME\tSIZE\tATTACHED TO\tIMAGE")
	for _, v := range vols {
		nodes := "-"
		for i, at := range v.Attachments {
			if i == 0 {
				nodes = at.Node
				continue
			}
			nodes += "," + at.Node
		}
		fmt.Fprintf(t, "%s\t%q\t%s\t%s\t%s\n", v.ID, v.Name, formatSize(v.Size), nodes, v.Image)
	}
	_ = t.Flush() // w's errors are the terminal's
}

// poolProblem is one as problems prints it.
type poolProblem struct {
	Path   string `json:"path"`
	Reason string `json:"reason"`
}

func (a *app) poolProblems(ctx context.Context, p *poolAccess) *cobra.Command {
	return &cobra.Command{
		Use:   "problems",
		Short: "Name what does not belong in a pool or cannot be read",
		Long: `Read every record of a pool and name what is damaged, missing or foreign, and an
account that does not agree with the records. Nothing is changed.

Exit codes: 0 nothing was found, 1 something was, or the pool could not be read.`,
		Example: `  vhdxctl pool problems --pool /srv/vhdx`,
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			found := []poolProblem{}
			err := p.do(ctx, func(s *pool.Set) error {
				for _, x := range s.Problems(ctx) {
					found = append(found, poolProblem{x.Path, x.Reason})
				}
				return nil
			})
			if err != nil {
				return err
			}
			a.print(found, func(w io.Writer) {
				for _, x := range found {
					fmt.Fprintf(w, "%s: %s\n", x.Path, x.Reason)
				}
				if len(found) == 0 {
					fmt.Fprintln(w, "no problems")
				}
			})
			if len(found) > 0 {
				return exitError(exitFailed)
			}
			return nil
		},
	}
}
