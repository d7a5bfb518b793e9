package vhdx

import (
	"fmt"
	"math/bits"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// DumpedEntry is an entry of the BAT (MS-VHDX 2.5).
type DumpedEntry struct {
	Index    int64  `json:"index"`
	At       int64  `json:"at"`                // of the entry, in the file
	Block    int64  `json:"block"`             // payload block; of a sector bitmap, -1
	Chunk    int64  `json:"chunk"`             // whose sector bitmap or block it is
	State    string `json:"state"`             // the specification's name
	Offset   int64  `json:"offset"`            // of the block, in the file
	Raw      string `json:"raw"`               // all 64 bits
	Problem  string `json:"problem,omitempty"` // of the entry alone; check finds what entries do to each other
	Relevant bool   `json:"-"`                 // anything but an untouched entry
}

// Entries returns how many entries the BAT has.
func (d *Dump) Entries() (int64, error) {
	if err := d.need("BAT", d.c.bat != nil && d.c.r.Blocks > 0); err != nil {
		return 0, err
	}
	return d.c.geometry.Entries(), nil
}

// BAT calls visit with entries from first on, until it returns false.
func (d *Dump) BAT(first int64, visit func(DumpedEntry) bool) error {
	total, err := d.Entries()
	if err != nil {
		return err
	}
	buf := newWords(batChunk)
	for at := max(first, 0) / entriesPerPage * entriesPerPage; at < total; at += batChunk {
		n := min(batChunk, total-at)
		off := int64(d.c.bat.Offset) + at*ondisk.BATEntrySize
		if err := readWords(d.c.f, buf[:roundUp(n, entriesPerPage)], off); err != nil {
			return corruptRead(d.c.f, "BAT", off, err)
		}
		for i, e := range buf[:n] {
			if index := at + int64(i); index >= first && !visit(d.entry(index, ondisk.BATEntry(e))) {
				return nil
			}
		}
		if err := d.c.ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

func (d *Dump) entry(index int64, e ondisk.BATEntry) DumpedEntry {
	g := d.c.geometry
	dumped := DumpedEntry{
		Index: index, At: int64(d.c.bat.Offset) + index*ondisk.BATEntrySize, Chunk: index / (g.ChunkRatio() + 1), Block: none,
		State: e.State().String(), Offset: e.Offset(), Raw: fmt.Sprintf("%#016x", uint64(e)), Relevant: e != 0,
	}
	if g.IsBitmap(index) {
		dumped.State = "bitmap " + e.State().BitmapString()
	} else {
		dumped.Block = g.BlockOf(index)
	}
	switch {
	case e.Reserved() != 0:
		dumped.Problem = "reserved bits are set"
	case e.OffsetMB() > maxFileSize/ondisk.MiB, e.Offset() >= roundUp(d.c.r.FileSize, ondisk.MiB):
		dumped.Problem = "beyond the file's end"
	}
	return dumped
}

// DumpedRun is a run of sectors that a sector bitmap says lie in this file.
type DumpedRun struct {
	Sector int64 `json:"sector"` // of the disk
	Count  int64 `json:"count"`
}

// Chunks returns how many chunks, and so sector bitmaps, the disk has; 0
// without a parent.
func (d *Dump) Chunks() (int64, error) {
	if _, err := d.Entries(); err != nil || !d.c.geometry.HasParent {
		return 0, err
	}
	return d.c.geometry.BitmapBlocks(), nil
}

// Bitmap calls visit with the runs of set bits in a chunk's sector bitmap,
// until it returns false. Bits count whatever their block's state is.
func (d *Dump) Bitmap(chunk int64, visit func(DumpedRun) bool) error {
	chunks, err := d.Chunks()
	if err != nil {
		return err
	}
	if chunk < 0 || chunk >= chunks {
		return fmt.Errorf("%s: chunk %d: the disk has %d with sector bitmaps: %w", d.c.r.File, chunk, chunks, ErrOutOfRange)
	}
	var entry DumpedEntry
	if err := d.BAT(d.c.geometry.BitmapIndex(chunk), func(e DumpedEntry) bool { entry = e; return false }); err != nil {
		return err
	}
	if entry.Offset <= 0 || entry.Problem != "" {
		return nil
	}
	buf := alignedBytes(ondisk.BitmapBlockSize)
	if err := readFull(d.c.f, buf, entry.Offset); err != nil {
		return corruptRead(d.c.f, "sector bitmap", entry.Offset, err)
	}
	eachRun(buf, func(first, count int64) bool {
		return visit(DumpedRun{chunk*ondisk.SectorsPerBitmap + first, count})
	})
	return nil
}

// eachRun calls visit with the runs of set bits.
func eachRun(bitmap []byte, visit func(first, count int64) bool) {
	start := int64(-1)
	for i, b := range bitmap {
		if b == 0 && start < 0 || b == 0xff && start >= 0 {
			continue
		}
		for bit := 0; bit < 8; {
			set := b>>bit&1 != 0
			at := int64(i)*8 + int64(bit)
			run := bits.TrailingZeros8(b >> bit)
			if set {
				run = bits.TrailingZeros8(^(b >> bit))
			}
			switch {
			case set && start < 0:
				start = at
			case !set && start >= 0:
				if !visit(start, at-start) {
					return
				}
				start = -1
			}
			bit += max(run, 1)
		}
	}
	if start >= 0 {
		visit(start, int64(len(bitmap))*8-start)
	}
}
