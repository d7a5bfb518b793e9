package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/spf13/cobra"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// mapEntry is one line of map, with the names qemu-img gives them.
type mapEntry struct {
	Start  int64 `json:"start"`
	Length int64 `json:"length"`
	Depth  int   `json:"depth"`
	// Present: a layer of the chain says what is there.
	Present bool `json:"present"`
	Zero    bool `json:"zero"` // reads zero
	Data    bool `json:"data"` // is in a file
	// Compressed is always false; tools that read qemu-img's output expect it.
	Compressed bool   `json:"compressed"`
	Offset     *int64 `json:"offset,omitempty"` // in the file
	State      string `json:"state"`
}

type mapOptions struct {
	output     string
	html       string
	start, max sizeFlag
}

func (a *app) mapCommand(ctx context.Context) *cobra.Command {
	o := mapOptions{max: math.MaxInt64}
	cmd := &cobra.Command{
		Use:   "map PATH",
		Short: "Show where the blocks of an image lie",
		Long: `Show where the blocks of an image lie: which parts of the disk have data, in
which layer of the chain and where in its file, and which read zero. Blocks
that have space but lie in a hole of the file are told apart.

As text, only what has data is shown. As JSON (--json, or --output json) the
whole disk is, in the form of qemu-img map, with the state of the block added.
--html FILE writes one page, with everything in it, that draws the disk and the
file, whatever their size; it replaces FILE.`,
		Example: `  vhdxctl map disk.vhdx
  vhdxctl map --output json disk.vhdx | jq '[.[] | select(.data) | .length] | add'
  vhdxctl map --html disk.html disk.vhdx`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			switch o.output {
			case "human":
			case "json":
				a.json = true
			default:
				return fmt.Errorf("--output %s: want human or json", o.output)
			}
			return a.mapImage(ctx, args[0], o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.output, "output", "human", "human or json")
	f.StringVar(&o.html, "html", "", "draw the map into this `file`; - for standard output")
	f.VarP(&o.start, "start-offset", "s", "begin here")
	f.VarP(&o.max, "max-length", "l", "show so much of the disk")
	return cmd
}

func (a *app) mapImage(ctx context.Context, path string, o mapOptions) (err error) {
	im, err := a.openReadOnly(path)
	if err != nil {
		return err
	}
	defer im.Close()
	if o.html != "" {
		return a.mapHTML(ctx, im, path, o.html)
	}
	if int64(o.start) > im.Size() {
		return fmt.Errorf("--start-offset %d: the disk has %d bytes", o.start, im.Size())
	}
	end := im.Size()
	if int64(o.max) < end-int64(o.start) {
		end = int64(o.start) + int64(o.max)
	}
	w := bufio.NewWriter(a.out)
	emit, finish := mapText(w)
	if a.json {
		emit, finish = mapJSON(w)
	}
	if err := eachEntry(im, int64(o.start), end, emit); err != nil {
		return err
	}
	return errors.Join(finish(), w.Flush())
}

func mapText(w io.Writer) (emit func(mapEntry) error, finish func() error) {
	header := true
	return func(e mapEntry) error {
		if header {
			fmt.Fprintf(w, "%-18s %-18s %-18s %s\n", "Offset", "Length", "Mapped to", "Layer")
			header = false
		}
		if !e.Data {
			return nil
		}
		_, err := fmt.Fprintf(w, "%#-18x %#-18x %#-18x %d\n", e.Start, e.Length, *e.Offset, e.Depth)
		return err
	}, func() error { return nil }
}

// mapJSON writes one entry a line, however many there are.
func mapJSON(w io.Writer) (emit func(mapEntry) error, finish func() error) {
	between := "["
	return func(e mapEntry) error {
			line, err := json.Marshal(e)
			if err == nil {
				_, err = fmt.Fprintf(w, "%s%s", between, line)
			}
			between = ",\n"
			return err
		}, func() error {
			if between == "[" {
				fmt.Fprint(w, between)
			}
			_, err := fmt.Fprintln(w, "]")
			return err
		}
}

// eachEntry calls emit for all of [start, end), holes of the file told apart.
func eachEntry(im *vhdx.Image, start, end int64, emit func(mapEntry) error) error {
	for off := start; off < end; {
		run, err := im.NextRun(off)
		if err != nil {
			return err
		}
		run.Length = min(run.Length, end-off)
		off += run.Length
		if run.Kind != vhdx.RunData {
			e := newMapEntry(run)
			if err := emit(e); err != nil {
				return err
			}
			continue
		}
		if err := eachPart(im, run, emit); err != nil {
			return err
		}
	}
	return nil
}

// eachPart cuts a run of data where the file has holes.
func eachPart(im *vhdx.Image, run vhdx.Run, emit func(mapEntry) error) error {
	for end := run.Offset + run.Length; run.Length > 0; {
		first, last, err := im.NextData(run.Offset)
		if err != nil {
			return err
		}
		e := newMapEntry(run)
		if first > run.Offset {
			e.Data, e.Zero = false, true
			e.Length = min(first, end) - run.Offset
		} else {
			e.Length = min(last, end) - run.Offset
		}
		if err := emit(e); err != nil {
			return err
		}
		run.Offset, run.Length, run.FileOffset = run.Offset+e.Length, run.Length-e.Length, run.FileOffset+e.Length
	}
	return nil
}

func newMapEntry(run vhdx.Run) mapEntry {
	e := mapEntry{
		Start: run.Offset, Length: run.Length, Depth: run.Layer, State: run.Kind.String(),
		Present: run.Kind != vhdx.RunAbsent, Data: run.Kind == vhdx.RunData,
	}
	e.Zero = !e.Data
	if e.Data {
		e.Offset = &run.FileOffset
	}
	return e
}
