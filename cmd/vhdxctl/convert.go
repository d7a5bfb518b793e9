package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/disk"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// convertOptions is what the command line of convert says.
type convertOptions struct {
	sourceFormat, format string
	create               vhdx.CreateOptions
	noCreate             bool
	overwrite            bool
	resume               bool
	noSparse             bool
	noReflink            bool
	quiet                bool
	workers              int
	unit                 sizeFlag
	notes                []string // what else there is to say of the source
}

// convertResult is what convert prints as JSON.
type convertResult struct {
	Source       string   `json:"source"`
	SourceFormat string   `json:"sourceFormat"`
	Target       string   `json:"target"`
	Format       string   `json:"format"`
	VirtualSize  int64    `json:"virtualSize"`
	BytesRead    int64    `json:"bytesRead"`
	BytesWritten int64    `json:"bytesWritten"`
	BytesShared  int64    `json:"bytesShared"` // with the source, by the filesystem
	ResumedAt    int64    `json:"resumedAt"`
	Seconds      float64  `json:"seconds"`
	Notes        []string `json:"notes"`
}

const convertLong = `Copy a disk: from a VHDX of any type, a raw file, a block device or standard
input (-), to a VHDX, a raw file, a block device or standard output (-). A
differencing image is read through its chain, so the copy stands alone.

What is not there is not read: blocks without space, holes of files. What is
read and zero is not written. Where source and target are on one filesystem that
can share data (XFS, Btrfs), it is shared until one of them is written to, but for a
fixed target. The target gets its name only when all of it is
on the medium; Ctrl-C, an error or a kill leaves none.

The format of the source is found by looking at it, that of the target by -O or
its name: .vhdx is a VHDX, anything else raw.

An existing target is refused. --overwrite replaces a file in one step at the
end. -n writes into what is there, a device or an image, which must be large
enough; then an interruption leaves it half old and half new.

With --resume an interrupted copy can go on: it is kept as TARGET.partial, with
a note of how far it is safe in TARGET.partial.json, and the same command goes
on from there. The note names the source as it was; if that has changed since,
the command refuses to mix two states and says what to remove. Pipes and block
devices cannot tell whether they have changed and so cannot be resumed.`

const convertExample = `  vhdxctl convert disk.raw disk.vhdx
  vhdxctl convert -O raw disk.vhdx disk.img
  vhdxctl convert --fixed dynamic.vhdx fixed.vhdx
  vhdxctl convert -n disk.vhdx /dev/sdx
  vhdxctl convert --resume /mnt/nas/big.vhdx /data/big.vhdx
  ssh host cat /dev/vg/lv | vhdxctl convert - lv.vhdx`

func (a *app) convertCommand(ctx context.Context) *cobra.Command {
	var o convertOptions
	var block, log sizeFlag
	var list []string
	cmd := &cobra.Command{
		Use:     "convert SOURCE TARGET",
		Short:   "Copy a disk into another format",
		Long:    convertLong,
		Example: convertExample,
		Args:    cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			if block != 0 {
				o.create.BlockSize = int64(block)
			}
			if log != 0 {
				o.create.LogSize = int64(log)
			}
			if err := o.complete(list); err != nil {
				return err
			}
			return a.convert(ctx, args[0], args[1], o)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.sourceFormat, "source-format", "f", "", "format of the source, raw or vhdx (default: found by looking)")
	f.StringVarP(&o.format, "format", "O", "", "format of the target, raw or vhdx (default: by its name)")
	f.StringSliceVarP(&list, "options", "o", nil, "of a VHDX target, as qemu-img takes them: subformat=dynamic|fixed, block_size=, log_size=")
	f.BoolVar(&o.create.Fixed, "fixed", false, "make a fixed VHDX")
	f.Var(&block, "block-size", "of the VHDX, 1M to 256M, a power of two (default by size)")
	f.Var(&log, "log-size", "of the VHDX, whole MiB (default 1M)")
	f.BoolVarP(&o.noCreate, "no-create", "n", false, "write into the existing target")
	f.BoolVar(&o.overwrite, "overwrite", false, "replace an existing file")
	f.BoolVar(&o.resume, "resume", false, "keep an interrupted copy, and go on with one")
	f.BoolVar(&o.noSparse, "no-sparse", false, "give the new file all of its space: Windows refuses sparse images")
	f.BoolVar(&o.noReflink, "no-reflink", false, "copy the data even where the filesystem could share it")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "no progress bar")
	f.IntVarP(&o.workers, "workers", "m", 0, "reads and writes at once, 1 to 64 (default 4)")
	f.VarP(&o.unit, "sparse-size", "S", "how many zeros are left out rather than written, a power of two, 4K to 1M (default 64K)")
	// Scripts written for qemu-img pass these; a terminal gets progress in any
	// case, and the cache is not used.
	f.BoolP("progress", "p", false, "")
	f.StringP("cache", "t", "", "")
	f.StringP("source-cache", "T", "", "")
	for _, name := range []string{"progress", "cache", "source-cache"} {
		f.Lookup(name).Hidden = true
	}
	return cmd
}

// complete checks the options and takes those of -o over.
func (o *convertOptions) complete(list []string) error {
	if err := errors.Join(checkFormat("--source-format", o.sourceFormat), checkFormat("--format", o.format)); err != nil {
		return err
	}
	if unit := o.unit; unit != 0 && (unit < 4096 || unit > 1<<20 || unit&(unit-1) != 0) {
		return fmt.Errorf("--sparse-size %d: want a power of two from 4K to 1M", unit)
	}
	if o.workers < 0 || o.workers > 64 {
		return fmt.Errorf("--workers %d: want 1 to 64", o.workers)
	}
	if o.noCreate && (o.overwrite || o.resume || o.noSparse) {
		return errors.New("-n writes into what is there; it goes with neither --overwrite nor --resume nor --no-sparse")
	}
	for _, pair := range list {
		if err := qemuOption(&o.create, pair); err != nil {
			return fmt.Errorf("-o %s: %w", pair, err)
		}
	}
	return nil
}

// qemuOption takes one option of qemu-img's VHDX driver.
func qemuOption(c *vhdx.CreateOptions, pair string) (err error) {
	name, value, ok := strings.Cut(pair, "=")
	if !ok {
		return errors.New("want NAME=VALUE")
	}
	switch name {
	case "subformat":
		c.Fixed = value == "fixed"
		if !c.Fixed && value != "dynamic" {
			return errors.New("want dynamic or fixed")
		}
	case "block_size":
		c.BlockSize, err = parseSize(value)
	case "log_size":
		c.LogSize, err = parseSize(value)
	case "block_state_zero":
		// Blocks without data are NOT_PRESENT here, which every reader knows.
		_, err = strconv.ParseBool(strings.NewReplacer("on", "true", "off", "false").Replace(value))
	default:
		err = errors.New("unknown: there are subformat, block_size and log_size")
	}
	return err
}

func (a *app) convert(ctx context.Context, from, to string, o convertOptions) error {
	began := time.Now()
	c := &conversion{app: a, from: from, to: to, o: o, notes: o.notes}
	stats, err := c.run(ctx)
	if err != nil {
		return err
	}
	if c.sector > 0 {
		stats.Size = (stats.Size + c.sector - 1) / c.sector * c.sector
	}
	r := convertResult{
		Source: from, SourceFormat: c.sourceFormat, Target: to, Format: c.format, VirtualSize: stats.Size,
		BytesRead: stats.Read, BytesWritten: stats.Written, BytesShared: stats.Cloned, ResumedAt: c.resumedAt,
		Seconds: time.Since(began).Seconds(), Notes: append([]string{}, c.notes...),
	}
	w := a.out
	if to == "-" {
		w = a.errOut // standard output is the disk
	}
	if a.json {
		a.printJSON(w, r)
	} else if to != "-" {
		r.print(w)
	}
	return nil
}

func (r convertResult) print(w io.Writer) {
	for _, note := range r.Notes {
		fmt.Fprintf(w, "note: %s\n", note)
	}
	if r.ResumedAt > 0 {
		fmt.Fprintf(w, "resumed at %s\n", exactSize(r.ResumedAt))
	}
	shared := ""
	if r.BytesShared > 0 {
		shared = ", " + formatSize(r.BytesShared) + " shared by the filesystem"
	}
	fmt.Fprintf(w, "%s: %s, %s, copied from %s: %s read, %s written%s\n",
		r.Target, r.Format, exactSize(r.VirtualSize), r.Source, formatSize(r.BytesRead), formatSize(r.BytesWritten), shared)
}

// copyOptions are those of the library.
func (c *conversion) copyOptions(bar *progress) disk.Options {
	return disk.Options{
		Workers: c.o.workers, Unit: int(c.o.unit), Progress: bar.report,
		NoClone: c.o.noReflink || c.o.noSparse || c.o.create.Fixed, // who asks for space wants it for himself
	}
}
