package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// dumpRange is what part of a long structure is shown.
type dumpRange struct {
	first, count int64
	all          bool
}

func (a *app) dumpCommand(ctx context.Context) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dump",
		Short: "Show the structures of an image",
		Long: `Show the structures of an image as they lie in the file, sound or not. Nothing is
changed; a log that must be replayed is applied in memory first, and dump log shows
what it holds.`,
		Example: `  vhdxctl dump headers disk.vhdx
  vhdxctl dump bat --first 1000 --count 20 disk.vhdx
  vhdxctl dump log --json disk.vhdx`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var r dumpRange
	cmd.AddCommand(
		a.dumpPart(ctx, "headers", "Show both headers", "Show both headers and which one counts.", a.dumpHeaders),
		a.dumpPart(ctx, "regions", "Show both copies of the region table", "Show both copies of the region table and which one counts.", a.dumpRegions),
		a.dumpPart(ctx, "metadata", "Show the metadata items", "Show the metadata items, the system's and users', and what the known ones say.", a.dumpMetadata),
		ranged(a.dumpPart(ctx, "bat", "Show the block table", `Show entries of the block table. Untouched ones, which are zero, are left out.`,
			func(d *vhdx.Dump, path string) error { return a.dumpBAT(d, path, r) }), &r, "entry"),
		ranged(a.dumpPart(ctx, "log", "Show the log", `Show the entries in the log: those that a replay applies are marked, the others
are past.`, func(d *vhdx.Dump, path string) error { return a.dumpLog(d, path, r) }), &r, "offset in the log"),
		ranged(a.dumpPart(ctx, "bitmap", "Show sector bitmaps", `Show which sectors of a differencing image lie in it, as runs, chunk by chunk.`,
			func(d *vhdx.Dump, path string) error { return a.dumpBitmap(ctx, d, path, r) }), &r, "chunk"),
	)
	return cmd
}

func (a *app) dumpPart(ctx context.Context, name, short, long string, show func(*vhdx.Dump, string) error) *cobra.Command {
	return &cobra.Command{
		Use: name + " PATH", Short: short, Long: long,
		Example: fmt.Sprintf("  vhdxctl dump %s disk.vhdx\n  vhdxctl dump %s --json disk.vhdx", name, name),
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			f, err := openFile(args[0], false)
			if err != nil {
				return err
			}
			d, err := vhdx.NewDump(ctx, f)
			if err == nil {
				err = show(d, args[0])
			}
			return errors.Join(err, f.Close())
		},
	}
}

// ranged gives a command the flags of a dumpRange.
func ranged(cmd *cobra.Command, r *dumpRange, unit string) *cobra.Command {
	f := cmd.Flags()
	f.Int64Var(&r.first, "first", 0, unit+" to begin at")
	f.Int64Var(&r.count, "count", 100, "how many to show at most")
	f.BoolVar(&r.all, "all", false, "show all, however many there are")
	return cmd
}

// take reports whether one more is to be shown.
func (r *dumpRange) take() bool {
	r.count--
	return r.all || r.count >= 0
}

// table writes rows as columns.
func table(w io.Writer, head string, rows func(row func(format string, args ...any))) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, head)
	rows(func(format string, args ...any) { fmt.Fprintf(t, format+"\n", args...) })
	t.Flush() //nolint:errcheck // standard output
}

// problem is a column that is empty where all is well.
func problem(p string) string {
	if p == "" {
		return ""
	}
	return " (" + p + ")"
}

func (a *app) dumpHeaders(d *vhdx.Dump, path string) error {
	headers, err := d.Headers()
	if err != nil {
		return err
	}
	a.print(struct {
		Path    string              `json:"path"`
		Headers []vhdx.DumpedHeader `json:"headers"`
	}{path, headers}, func(w io.Writer) {
		for _, h := range headers {
			state := "valid"
			if h.Current {
				state = "valid, current"
			}
			if h.Problem != "" {
				state = "not valid: " + h.Problem
			}
			fmt.Fprintf(w, "header %d at %#x: %s\n", h.Slot, h.Offset, state)
			if h.FileWriteGUID == "" {
				continue
			}
			fmt.Fprintf(w, "  sequence number  %d\n  FileWriteGuid    %s\n  DataWriteGuid    %s\n  LogGuid          %s\n  log              %#x bytes at %#x, version %d\n  version          %d\n",
				h.SequenceNumber, h.FileWriteGUID, h.DataWriteGUID, h.LogGUID, h.LogLength, h.LogOffset, h.LogVersion, h.Version)
		}
	})
	return nil
}

func (a *app) dumpRegions(d *vhdx.Dump, path string) error {
	tables, err := d.Regions()
	if err != nil {
		return err
	}
	a.print(struct {
		Path   string             `json:"path"`
		Dirty  bool               `json:"dirty"`
		Tables []vhdx.DumpedTable `json:"tables"`
	}{path, d.Dirty, tables}, func(w io.Writer) {
		dirtyNote(w, d)
		for _, t := range tables {
			used := ""
			if t.Used {
				used = ", in use"
			}
			fmt.Fprintf(w, "region table %d at %#x: %s%s\n", t.Copy, t.Offset, count(len(t.Regions), "region", "regions"), used)
			for _, p := range t.Problems {
				fmt.Fprintf(w, "  not valid: %s\n", p)
			}
			for _, r := range t.Regions {
				required := ""
				if r.Required {
					required = ", required"
				}
				fmt.Fprintf(w, "  %s  %#x bytes at %#x%s  %s\n", r.ID, r.Length, r.Offset, required, r.Name)
			}
		}
	})
	return nil
}

func dirtyNote(w io.Writer, d *vhdx.Dump) {
	if d.Dirty {
		fmt.Fprintln(w, "(with the log applied, which has not been replayed)")
	}
}

func (a *app) dumpMetadata(d *vhdx.Dump, path string) error {
	items, err := d.Metadata()
	if err != nil {
		return err
	}
	a.print(struct {
		Path  string            `json:"path"`
		Dirty bool              `json:"dirty"`
		Items []vhdx.DumpedItem `json:"items"`
	}{path, d.Dirty, items}, func(w io.Writer) {
		dirtyNote(w, d)
		table(w, "item\toffset\tbytes\tflags\tname\tvalue", func(row func(string, ...any)) {
			for _, i := range items {
				row("%s\t%#x\t%d\t%s\t%s\t%s", i.ID, i.Offset, i.Length, itemFlags(i.MetadataItem), i.Name, i.Value+problem(i.Problem))
			}
		})
	})
	return nil
}

// itemFlags is the flags of an item in the order of their bits.
func itemFlags(i vhdx.MetadataItem) string {
	flags := []byte("---")
	for n, set := range []bool{i.User, i.VirtualDisk, i.Required} {
		if set {
			flags[n] = "udr"[n]
		}
	}
	return string(flags)
}
