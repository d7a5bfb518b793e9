package vhdx

import (
	"errors"
	"fmt"
	"math"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// outlineWindow is how many bytes of a block table, and of a sector bitmap, are
// in memory for each image of a chain.
const outlineWindow = 32 << 10

// outlineLayer answers what one image says of each place of the disk. It is
// meant to be asked in ascending order.
type outlineLayer struct {
	im       *Image // its head alone: it has neither a table nor a chain
	geometry ondisk.Geometry
	size     int64
	shift    uint // log2 of the block size
	ratio    uint // log2 of the chunk ratio

	last span // the latest answer

	// The entries [first, end) of the table; they are zero where entries is
	// empty.
	first, end int64
	entries    []uint64
	words      []uint64 // what entries lies in

	chunk    int64 // whose sector bitmap lies at bitmap; -1: none's
	bitmap   int64
	bitsFrom int64        // number of the page, over all chunks, that bits begins with
	bits     []bitmapPage // nil: none is read
	buf      []byte
}

// spanKind is what an image says of a range.
type spanKind uint8

const (
	spanThrough spanKind = iota // nothing: the image below is to be asked
	spanZero                    // it reads zero
	spanData                    // it is in this image's file
)

// span is a range of the disk of which an image says one thing.
type span struct {
	off, end int64
	kind     spanKind
	at       int64 // of off in the file, for spanData
}

// at returns the range around off that is alike, or a part of it.
func (l *outlineLayer) at(off int64) (span, error) {
	switch {
	case l.last.off <= off && off < l.last.end:
		return l.last, nil
	case off >= l.size: // where a layer ends, so does all below it
		return span{off: l.size, end: math.MaxInt64, kind: spanZero}, nil
	}
	s, err := l.find(off)
	if err != nil {
		return s, fmt.Errorf("%s: map at %#x: %w", l.im.name, off, err)
	}
	s.end = min(s.end, l.size)
	l.last = s
	return s, nil
}

func (l *outlineLayer) find(off int64) (span, error) {
	block := off >> l.shift
	index := block + block>>l.ratio
	if err := l.load(index); err != nil {
		return span{}, err
	}
	if len(l.entries) == 0 {
		return span{off: block << l.shift, end: l.geometry.BlockOf(l.end) << l.shift, kind: l.absent()}, nil
	}
	e, err := l.entry(index)
	if err != nil {
		return span{}, err
	}
	if e.State() == ondisk.BlockPartiallyPresent {
		return l.inBlock(block, e, off)
	}
	s := l.whole(block, e)
	for block++; ; block++ {
		if index = block + block>>l.ratio; index >= l.end {
			return s, nil
		}
		if e, err = l.entry(index); err != nil {
			return span{}, err
		}
		next := l.whole(block, e)
		if e.State() == ondisk.BlockPartiallyPresent || next.kind != s.kind || s.kind == spanData && next.at != s.at+next.off-s.off {
			return s, nil
		}
		s.end = next.end
	}
}

// absent is what a block that is NOT_PRESENT is.
func (l *outlineLayer) absent() spanKind {
	if l.geometry.HasParent {
		return spanThrough
	}
	return spanZero
}

// whole is what the entry of a block says that is not partially present.
func (l *outlineLayer) whole(block int64, e ondisk.BATEntry) span {
	s := span{off: block << l.shift, end: (block + 1) << l.shift, kind: spanZero}
	switch e.State() {
	case ondisk.BlockNotPresent:
		s.kind = l.absent()
	case ondisk.BlockFullyPresent:
		s.kind, s.at = spanData, e.Offset()
	}
	return s
}

// entry returns an entry of the window, as far as can be judged by itself.
func (l *outlineLayer) entry(index int64) (ondisk.BATEntry, error) {
	e := ondisk.BATEntry(l.entries[index-l.first])
	if e == 0 {
		return e, nil
	}
	return e, l.judge(index, e)
}

// judge refuses what [layout.place] does, but for overlaps.
func (l *outlineLayer) judge(index int64, e ondisk.BATEntry) error {
	reason := ""
	switch state := e.State(); {
	case e.Reserved() != 0:
		reason = "reserved bits set"
	case e.OffsetMB() > maxFileSize/ondisk.MiB:
		reason = "it lies beyond any file"
	case present(e):
		switch {
		case state == ondisk.BlockPartiallyPresent && !l.geometry.HasParent:
			reason = "partially present, and the image has no parent"
		case e.Offset() < ondisk.HeaderSectionSize:
			reason = "present, but without an offset"
		case e.Offset() >= l.im.fileEnd:
			reason = fmt.Sprintf("it reaches beyond the file's end at %#x", l.im.fileEnd)
		}
	case state == 4:
		reason = "state 4 is reserved"
	}
	if reason == "" {
		return nil
	}
	return corrupt(l.im.f, fmt.Sprintf("BAT entry %d", index), l.entryOffset(index), fmt.Errorf("%#x: %s", uint64(e), reason))
}

func (l *outlineLayer) entryOffset(index int64) int64 {
	return int64(l.im.regions.bat.Offset) + index*ondisk.BATEntrySize
}

// load moves the window to an entry. A hole in the table, which is what a
// sparse image of a large disk has most of, is passed in one step.
func (l *outlineLayer) load(index int64) error {
	if l.first <= index && index < l.end {
		return nil
	}
	const most = outlineWindow / ondisk.BATEntrySize
	total := l.geometry.Entries()
	first := index &^ (entriesPerPage - 1)
	at := l.entryOffset(first)
	if seeker, ok := l.im.f.(holeSeeker); ok { // not where a log is applied in memory
		data, err := seeker.NextData(at, l.entryOffset(total))
		if err != nil {
			return err
		}
		if n := (data - at) / ondisk.BATEntrySize; n >= entriesPerPage && first+n > index {
			l.first, l.end, l.entries = first, min(first+n, total), nil
			return nil
		}
	}
	n := min(most, total-first)
	if l.words == nil {
		l.words = make([]uint64, roundUp(min(most, total), int64(entriesPerPage)))
	}
	if err := readWords(l.im.f, l.words[:roundUp(n, int64(entriesPerPage))], at); err != nil {
		return corruptRead(l.im.f, "BAT", at, err)
	}
	l.first, l.end, l.entries = first, first+n, l.words[:n]
	return nil
}

// inBlock is the run of sectors around off, in a partially present block, that
// this file has or has not.
func (l *outlineLayer) inBlock(block int64, e ondisk.BATEntry, off int64) (span, error) {
	lss := int64(l.im.metadata.logicalSectorSize)
	sector, end := off/lss, (block+1)<<l.shift
	page, err := l.bitsOf(block>>l.ratio, sector/bitsPerPage)
	if err != nil {
		return span{}, err
	}
	set, n := page.run(sector%bitsPerPage, end/lss-sector)
	s := span{off: sector * lss, end: (sector + n) * lss, kind: spanThrough}
	if set {
		s.kind, s.at = spanData, e.Offset()+s.off&(1<<l.shift-1)
	}
	return s, nil
}

// bitsOf returns a page of the sector bitmaps, numbered over all chunks.
func (l *outlineLayer) bitsOf(chunk, page int64) (*bitmapPage, error) {
	const pages = outlineWindow / ondisk.PageSize // of one chunk: it divides pagesPerBitmap
	if l.bits != nil && l.bitsFrom <= page && page < l.bitsFrom+pages {
		return &l.bits[page-l.bitsFrom], nil
	}
	if err := l.findBitmap(chunk); err != nil {
		return nil, err
	}
	if l.buf == nil {
		l.buf = alignedBytes(outlineWindow)
	}
	from := page / pages * pages
	at := l.bitmap + from%pagesPerBitmap*ondisk.PageSize
	if err := readFull(l.im.f, l.buf, at); err != nil {
		return nil, corruptRead(l.im.f, fmt.Sprintf("sector bitmap of chunk %d", chunk), at, err)
	}
	if l.bits == nil {
		l.bits = make([]bitmapPage, pages)
	}
	for i := range l.bits {
		l.bits[i].decode(l.buf[i*ondisk.PageSize:])
	}
	l.bitsFrom = from
	return &l.bits[page-from], nil
}

// findBitmap finds where a chunk's sector bitmap lies.
func (l *outlineLayer) findBitmap(chunk int64) error {
	if chunk == l.chunk {
		return nil
	}
	index := l.geometry.BitmapIndex(chunk)
	at := l.entryOffset(index)
	var raw [1]uint64
	if err := readWords(l.im.f, raw[:], at); err != nil {
		return corruptRead(l.im.f, "BAT", at, err)
	}
	e := ondisk.BATEntry(raw[0])
	switch {
	case e.State() != ondisk.BitmapPresent:
		return corrupt(l.im.f, fmt.Sprintf("BAT entry %d", index), at, errors.New("no sector bitmap, and a payload block of its chunk is partially present"))
	case e.Reserved() != 0, e.OffsetMB() > maxFileSize/ondisk.MiB, e.Offset() < ondisk.HeaderSectionSize:
		return corrupt(l.im.f, fmt.Sprintf("BAT entry %d", index), at, fmt.Errorf("%#x is no place of a sector bitmap", raw[0]))
	}
	l.chunk, l.bitmap = chunk, e.Offset()
	return nil
}
