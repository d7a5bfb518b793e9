package vhdx

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// structures mends region table, BAT and sector bitmaps, through the log.
func (r *repair) structures() error {
	p := &r.c.plan
	if r.im.headers.current.LogLength == 0 {
		return fmt.Errorf("the image has no log, so it cannot be changed safely: %w", ErrUnsupported)
	}
	fixes, total := r.placeCopies()
	if err := r.reserve(); err != nil {
		return err
	}
	if err := r.im.renewFileWriteGUID(); err != nil {
		return err
	}
	if err := r.copyBlocks(total); err != nil {
		return r.shrink(err)
	}
	if err := r.beginLog(r.end + total); err != nil {
		return err
	}
	if err := r.logTables(); err != nil {
		return err
	}
	if err := r.logEntries(fixes); err != nil {
		return err
	}
	if len(p.copies) == 0 { // a bitmap that shared its place has just moved
		if err := r.logBitmaps(); err != nil {
			return err
		}
	}
	return r.endLog()
}

// placeCopies gives every block that needs one a new place behind the end of
// the file. The entry is made when its page is: its state stays.
func (r *repair) placeCopies() (fixes []entryFix, total int64) {
	fixes = slices.Clone(r.c.plan.entries)
	for _, c := range r.c.plan.copies {
		fixes = append(fixes, entryFix{c.index, ondisk.MakeBATEntry(stateStays, r.end+total)})
		total += c.length
	}
	slices.SortStableFunc(fixes, func(a, b entryFix) int { return cmp.Compare(a.index, b.index) })
	return fixes, total
}

// stateStays is a state that no repair writes: the entry keeps its own.
const stateStays ondisk.BlockState = 4

// reserve makes the space of what will be written real, so that a full
// filesystem shows before anything is changed.
func (r *repair) reserve() error {
	h := r.im.headers.current
	if err := r.allocate(int64(h.LogOffset), int64(h.LogLength)); err != nil {
		return err
	}
	return r.allocate(0, ondisk.HeaderSectionSize)
}

// copyBlocks gives blocks that share a place with something else what they
// show now, in new space. Nothing refers to it yet: until the log does, an
// interrupted repair leaves a longer file and no more.
func (r *repair) copyBlocks(total int64) error {
	if err := r.grow(r.end + total); err != nil {
		return err
	}
	buf := alignedBytes(int(min(4*ondisk.MiB, max(total, ondisk.MiB))))
	to := r.end
	for _, c := range r.c.plan.copies {
		for done := int64(0); done < c.length; {
			if err := r.ctx.Err(); err != nil {
				return fmt.Errorf("interrupted: %w", err)
			}
			n := min(int64(len(buf)), c.length-done)
			if err := r.copyRange(buf[:n], c.off+done, to); err != nil {
				return fmt.Errorf("copy the block of BAT entry %d: %w", c.index, err)
			}
			done, to = done+n, to+n
		}
	}
	if len(r.c.plan.copies) > 0 {
		r.did(len(r.c.plan.copies), "gave a copy of its own to %s", count(len(r.c.plan.copies), "block", "blocks"))
	}
	return nil
}

// copyRange copies within the file. Beyond its old end there are zeros.
func (r *repair) copyRange(buf []byte, from, to int64) error {
	if err := readFull(r.im.f, buf, from); err != nil {
		return err
	}
	_, err := r.im.f.WriteAt(buf, to)
	return err
}

// beginLog makes everything written so far durable and begins a log as a
// session does, but that DataWriteGuid stays (I-LOG-1).
func (r *repair) beginLog(size int64) error {
	im := r.im
	im.space.end = size
	h := im.headers.current
	im.log = logWriter{offset: int64(h.LogOffset), length: h.LogLength, guid: ondisk.NewGUID(), logged: map[int64][]byte{}}
	if err := im.appendEntry(nil); err != nil {
		return err
	}
	if err := im.syncLog(syncRepairSpace); err != nil {
		return err
	}
	if err := im.writeHeader(func(h *ondisk.Header) { h.LogGUID, h.LogVersion = im.log.guid, 0 }); err != nil {
		return err
	}
	if err := im.syncHeader(syncLogGUID); err != nil {
		return err
	}
	return im.copyHeader()
}

// endLog puts everything logged in its place and empties the log.
func (r *repair) endLog() error {
	im := r.im
	if err := im.settle(); err != nil {
		return err
	}
	if err := im.clearLogGUID(syncCloseClear); err != nil {
		return err
	}
	return im.syncHeader(syncClosed)
}

// logTables gives both places the copy of the region table that counts.
func (r *repair) logTables() error {
	p := &r.c.plan
	if !p.tables && (!p.tablesApart || r.c.r.Corrupt()) {
		return nil
	}
	var pages []page
	for _, off := range tableOffsets {
		for at := 0; at < len(p.table); at += ondisk.PageSize {
			pages = append(pages, page{off + int64(at), p.table[at:][:ondisk.PageSize]})
		}
	}
	r.did(1, "made both copies of the region table equal")
	return r.im.logPages(pages)
}

// logEntries logs the pages of the BAT with their new entries.
func (r *repair) logEntries(fixes []entryFix) error {
	var batch []page
	for i := 0; i < len(fixes); {
		number := fixes[i].index / entriesPerPage
		off := int64(r.c.bat.Offset) + number*ondisk.PageSize
		data := make([]byte, ondisk.PageSize)
		if err := readFull(r.im.f, data, off); err != nil {
			return fmt.Errorf("read the BAT at %#x: %w", off, err)
		}
		for ; i < len(fixes) && fixes[i].index/entriesPerPage == number; i++ {
			at, e := int(fixes[i].index%entriesPerPage), fixes[i].entry
			if e.State() == stateStays {
				e = ondisk.MakeBATEntry(ondisk.DecodeBATEntry(data, at).State(), e.Offset())
			}
			e.Encode(data, at)
		}
		batch = append(batch, page{off, data})
		if len(batch) == r.im.log.maxPages() || i == len(fixes) {
			if err := r.im.logPages(batch); err != nil {
				return err
			}
			batch = batch[:0]
		}
	}
	if n := len(r.c.plan.entries); n > 0 {
		r.did(n, "mended %s of the BAT", count(n, "entry", "entries"))
	}
	return nil
}

// logBitmaps logs the pages of sector bitmaps without their stale bits.
func (r *repair) logBitmaps() error {
	p := &r.c.plan
	var batch []page
	var states []byte
	chunk := int64(-1)
	for i, fix := range p.bitmaps {
		if fix.chunk != chunk {
			var err error
			if states, err = r.chunkStates(fix.chunk); err != nil {
				return err
			}
			chunk = fix.chunk
		}
		data := make([]byte, ondisk.PageSize)
		if err := readFull(r.im.f, data, fix.off); err != nil {
			return fmt.Errorf("read a sector bitmap at %#x: %w", fix.off, err)
		}
		clearStale(r.c.geometry, chunk, states, fix.page, data, true)
		batch = append(batch, page{fix.off, data})
		if len(batch) == r.im.log.maxPages() || i == len(p.bitmaps)-1 {
			if err := r.im.logPages(batch); err != nil {
				return err
			}
			batch = batch[:0]
		}
	}
	if n := len(p.bitmaps); n > 0 {
		r.did(n, "cleared stale bits in %s of sector bitmaps", count(n, "page", "pages"))
	}
	return nil
}

// chunkStates returns the states of a chunk's payload blocks.
func (r *repair) chunkStates(chunk int64) ([]byte, error) {
	g := r.c.geometry
	ratio := g.ChunkRatio()
	entries := make([]byte, ratio*ondisk.BATEntrySize)
	off := int64(r.c.bat.Offset) + chunk*(ratio+1)*ondisk.BATEntrySize
	if err := readFull(r.im.f, entries, off); err != nil {
		return nil, fmt.Errorf("read the BAT at %#x: %w", off, err)
	}
	states := make([]byte, ratio)
	for i := range states {
		states[i] = byte(ondisk.DecodeBATEntry(entries, i).State())
	}
	return states, nil
}
