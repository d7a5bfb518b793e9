package vhdx

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// checkBAT judges the block allocation table (MS-VHDX 2.5) in one pass that
// keeps no entry. A second pass, over the same bytes, says who overlaps whom,
// where the first has seen that somebody does.
func (c *checker) checkBAT() error {
	r, entries := c.bat, c.geometry.Entries()
	p := at("BAT region", int64(r.Offset))
	if need := entries * ondisk.BATEntrySize; need > int64(r.Length) {
		c.corrupt(CodeBATRegion, p, "it has %#x bytes, and a disk of %#x needs %#x", r.Length, c.geometry.VirtualSize, need)
		return c.stop("the BAT is too short")
	}
	b := newBATPass(c)
	b.bitmapOf = b.checkBitmap
	if err := b.stream(b.segment); err != nil {
		return err
	}
	b.flush()
	if err := b.resolve(); err != nil {
		return err
	}
	if b.garbled {
		c.plan.giveUpBAT(c.r)
	}
	return nil
}

// batPass is the walk through the table.
type batPass struct {
	c       *checker
	g       ondisk.Geometry
	ratio   int64 // payload entries before each bitmap entry
	blocks  int64
	end     int64 // of the file, in whole MiB
	garbled bool  // an entry is nonsense: the table was overwritten

	// The run of FULLY_PRESENT blocks, one behind the other on the disk and in
	// the file, that the walk is in: claimed at once.
	runFirst, runCount int64 // blocks
	runOffset          int64
	runNext            uint64 // the entry that goes on with it

	clashes  []extent // space that somebody claimed second
	anchors  bool     // there are blocks that only remember a place
	states   []byte   // differencing: of the chunk's payload blocks
	bitmapOf func(chunk int64, e ondisk.BATEntry) error
}

// noRun is followed by nothing: an entry of 0 is asked for before.
const noRun = 0

func newBATPass(c *checker) *batPass {
	b := &batPass{
		c: c, g: c.geometry, ratio: c.geometry.ChunkRatio(), blocks: c.geometry.PayloadBlocks(),
		end: roundUp(c.r.FileSize, ondisk.MiB), runNext: noRun,
	}
	if c.geometry.HasParent {
		b.states = make([]byte, b.ratio)
	}
	return b
}

// batChunk is how many entries are read at once. A few of them stay in the
// processor's cache, and so does who copies them there.
const batChunk = 32 << 10

// batBuffers is how many pieces of the table are in memory: one is judged while
// the next ones are read.
const batBuffers = 3

// piece is a part of the table.
type piece struct {
	first   int64 // entry
	entries []uint64
	err     error
}

// stream calls do with every piece of the table, in order, while another
// goroutine reads ahead.
func (b *batPass) stream(do func(first int64, entries []uint64) error) error {
	total := b.g.Entries()
	free, full := make(chan []uint64, batBuffers), make(chan piece, batBuffers)
	room, done := borrowMiB()
	defer done()
	for i := range batBuffers {
		free <- wordsOf(room[i*batChunk*ondisk.BATEntrySize:][:batChunk*ondisk.BATEntrySize])
	}
	stopped := make(chan struct{})
	var reader sync.WaitGroup
	defer reader.Wait()
	defer close(stopped)
	reader.Go(func() { b.readAhead(total, free, full, stopped) })
	for done := int64(0); done < total; {
		p := <-full
		switch {
		case errors.Is(p.err, io.ErrUnexpectedEOF):
			b.c.corrupt(CodeBATRegion, at("BAT region", int64(b.c.bat.Offset)), "the file of %#x bytes ends inside the table", b.c.r.FileSize)
			return b.c.stop("the BAT cannot be read")
		case p.err != nil:
			return p.err
		}
		if err := do(p.first, p.entries); err != nil {
			return err
		}
		done += int64(len(p.entries))
		free <- p.entries[:cap(p.entries)]
		if err := b.c.told(done*ondisk.BATEntrySize, total*ondisk.BATEntrySize); err != nil {
			return err
		}
	}
	return nil
}

func (b *batPass) readAhead(total int64, free <-chan []uint64, full chan<- piece, stopped <-chan struct{}) {
	for first := int64(0); first < total; first += batChunk {
		var buf []uint64
		select {
		case buf = <-free:
		case <-stopped:
			return
		}
		n := min(batChunk, total-first)
		err := readWords(b.c.f, buf[:roundUp(n, entriesPerPage)], int64(b.c.bat.Offset)+first*ondisk.BATEntrySize)
		full <- piece{first, buf[:n], err} // never blocks: as many slots as buffers
	}
}

// told reports progress and asks whether to go on.
func (c *checker) told(done, total int64) error {
	if err := c.ctx.Err(); err != nil {
		return fmt.Errorf("interrupted: %w", err)
	}
	if c.o.Progress == nil {
		return nil
	}
	return c.o.Progress(done, total)
}

// segment judges a piece of the table: payload entries up to the next bitmap
// entry, that one, and so on.
func (b *batPass) segment(first int64, entries []uint64) error {
	n := int64(len(entries))
	for i := int64(0); i < n; {
		index := first + i
		if into := index % (b.ratio + 1); into < b.ratio {
			count := min(n-i, b.ratio-into)
			b.payload(index, entries[i:i+count])
			i += count
			continue
		}
		if err := b.bitmapEntry(index, ondisk.BATEntry(entries[i])); err != nil {
			return err
		}
		i++
	}
	return nil
}

// note keeps the states of payload entries, of which all are 0 before.
func (b *batPass) note(first int64, entries []uint64) {
	states := b.states[first%(b.ratio+1):]
	for i := 0; i < len(entries); i++ {
		if entries[i] == 0 {
			i += zeroLength(entries[i:]) - 1
			continue
		}
		states[i] = byte(entries[i] & 7)
	}
}

// payload judges consecutive payload entries of one chunk.
func (b *batPass) payload(first int64, entries []uint64) {
	step := uint64(b.g.BlockSize)
	if b.states != nil {
		b.note(first, entries)
	}
	onDisk := int(min(int64(len(entries)), max(0, b.g.PayloadIndex(b.blocks-1)+1-first)))
	for i := 0; i < onDisk; i++ {
		e := entries[i]
		if e == 0 {
			b.flush()
			i += zeroLength(entries[i:onDisk]) - 1
			continue
		}
		if e == b.runNext {
			n := runLength(entries[i:onDisk], e, step)
			b.runNext += uint64(n) * step
			b.runCount += int64(n)
			i += n - 1
			continue
		}
		b.flush()
		index := first + int64(i)
		if e&(1<<20-1) == uint64(ondisk.BlockFullyPresent) && e>>20-1 < maxFileSize/ondisk.MiB {
			b.runFirst, b.runCount = index-index/(b.ratio+1), 1
			b.runOffset, b.runNext = int64(e&^(1<<20-1)), e+step // what block does with it, at less cost
			continue
		}
		b.block(index, ondisk.BATEntry(e))
	}
	for i, e := range entries[onDisk:] {
		b.flush()
		if e != 0 {
			b.beyondDisk(first+int64(onDisk+i), ondisk.BATEntry(e))
		}
	}
}

// flush claims the space of the run.
func (b *batPass) flush() {
	if b.runCount == 0 {
		return
	}
	n := b.runCount
	b.runCount, b.runNext = 0, noRun
	length := n * b.g.BlockSize
	if b.runOffset+length <= b.end && b.c.space.take(b.runOffset, length) {
		b.c.r.Allocated += n
		return
	}
	b.c.r.Allocated += n
	if b.runOffset+length <= b.end && b.c.space.claimed(b.runOffset, length) < 0 {
		b.c.space.mark(b.runOffset, length)
		return
	}
	for i := range n {
		b.claim(b.runFirst+i, ondisk.MakeBATEntry(ondisk.BlockFullyPresent, b.runOffset+i*b.g.BlockSize))
	}
}
