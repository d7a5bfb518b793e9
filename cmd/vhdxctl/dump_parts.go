package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

func (a *app) dumpBAT(d *vhdx.Dump, path string, r dumpRange) error {
	total, err := d.Entries()
	if err != nil {
		return err
	}
	entries, next := []vhdx.DumpedEntry{}, int64(-1)
	if err := d.BAT(r.first, func(e vhdx.DumpedEntry) bool {
		if !e.Relevant {
			return true
		}
		if !r.take() {
			next = e.Index
			return false
		}
		entries = append(entries, e)
		return true
	}); err != nil {
		return err
	}
	a.print(struct {
		Path    string             `json:"path"`
		Dirty   bool               `json:"dirty"`
		Total   int64              `json:"total"`
		Next    int64              `json:"next"` // the first one that is not shown; -1: none
		Entries []vhdx.DumpedEntry `json:"entries"`
	}{path, d.Dirty, total, next, entries}, func(w io.Writer) {
		dirtyNote(w, d)
		fmt.Fprintf(w, "%s, of which the untouched are not shown\n", count(int(total), "entry", "entries"))
		table(w, "entry\tat\tblock\tstate\toffset\traw", func(row func(string, ...any)) {
			for _, e := range entries {
				block := fmt.Sprint(e.Block)
				if e.Block < 0 {
					block = fmt.Sprintf("chunk %d", e.Chunk)
				}
				row("%d\t%#x\t%s\t%s\t%#x\t%s%s", e.Index, e.At, block, e.State, e.Offset, e.Raw, problem(e.Problem))
			}
		})
		more(w, next)
	})
	return nil
}

func more(w io.Writer, next int64) {
	if next >= 0 {
		fmt.Fprintf(w, "There is more: --first %d, --count N or --all\n", next)
	}
}

func (a *app) dumpLog(d *vhdx.Dump, path string, r dumpRange) error {
	log := d.Log()
	entries, next := []vhdx.DumpedLogEntry{}, int64(-1)
	if r.first < 0 || r.first > log.Length {
		return fmt.Errorf("--first %d: the log has %d bytes", r.first, log.Length)
	}
	if err := d.LogEntries(uint32(r.first), func(e vhdx.DumpedLogEntry) bool {
		if !r.take() {
			next = int64(e.Position)
			return false
		}
		entries = append(entries, e)
		return true
	}); err != nil {
		return err
	}
	a.print(struct {
		Path string `json:"path"`
		vhdx.DumpedLog
		Dirty   bool                  `json:"dirty"`
		Next    int64                 `json:"next"`
		Entries []vhdx.DumpedLogEntry `json:"entries"`
	}{path, log, d.Dirty, next, entries}, func(w io.Writer) {
		state := "clean: what lies in it is past"
		switch {
		case log.Problem != "":
			state = "cannot be replayed: " + log.Problem
		case d.Dirty:
			state = "must be replayed"
		}
		fmt.Fprintf(w, "log of %#x bytes at %#x: %s\n", log.Length, log.Offset, state)
		table(w, "position\tsequence\tbytes\ttail\tflushed\tlast\tactive\tchanges", func(row func(string, ...any)) {
			for _, e := range entries {
				row("%#x\t%d\t%d\t%#x\t%#x\t%#x\t%v\t%s", e.Position, e.SequenceNumber, e.Length, e.Tail, e.FlushedFileOffset, e.LastFileOffset, e.Active, targets(e))
			}
		})
		more(w, next)
	})
	return nil
}

// targets says what an entry changes, in a few words.
func targets(e vhdx.DumpedLogEntry) string {
	if e.Problem != "" {
		return strings.TrimSpace(problem(e.Problem))
	}
	if len(e.Targets) == 0 {
		return "nothing"
	}
	const few = 4
	text := count(len(e.Targets), "range", "ranges") + ":"
	for i, t := range e.Targets {
		if i == few {
			return text + " ..."
		}
		zero := ""
		if t.Zero {
			zero = "zero "
		}
		text += fmt.Sprintf(" %s%#x+%#x", zero, t.Offset, t.Length)
	}
	return text
}

// dumpedChunk is a chunk's sector bitmap.
type dumpedChunk struct {
	Chunk int64            `json:"chunk"`
	Runs  []vhdx.DumpedRun `json:"runs"`
}

func (a *app) dumpBitmap(ctx context.Context, d *vhdx.Dump, path string, r dumpRange) error {
	chunks, err := d.Chunks()
	if err != nil {
		return err
	}
	shown, next := []dumpedChunk{}, int64(-1)
	for chunk := max(r.first, 0); chunk < chunks && next < 0; chunk++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		c := dumpedChunk{Chunk: chunk}
		if err := d.Bitmap(chunk, func(run vhdx.DumpedRun) bool {
			if !r.take() {
				next = chunk
				return false
			}
			c.Runs = append(c.Runs, run)
			return true
		}); err != nil {
			return err
		}
		if len(c.Runs) > 0 {
			shown = append(shown, c)
		}
	}
	a.print(struct {
		Path   string        `json:"path"`
		Dirty  bool          `json:"dirty"`
		Total  int64         `json:"total"` // chunks; 0: an image without a parent has no bitmaps
		Next   int64         `json:"next"`  // the chunk that is not shown to its end; -1: none
		Chunks []dumpedChunk `json:"chunks"`
	}{path, d.Dirty, chunks, next, shown}, func(w io.Writer) {
		if chunks == 0 {
			fmt.Fprintf(w, "%s: no parent, so no sector bitmaps\n", path)
			return
		}
		dirtyNote(w, d)
		fmt.Fprintf(w, "%s; sectors that lie in this file, runs as first+count\n", count(int(chunks), "chunk", "chunks"))
		for _, c := range shown {
			fmt.Fprintf(w, "chunk %d:", c.Chunk)
			for _, run := range c.Runs {
				fmt.Fprintf(w, " %d+%d", run.Sector, run.Count)
			}
			fmt.Fprintln(w)
		}
		more(w, next)
	})
	return nil
}
