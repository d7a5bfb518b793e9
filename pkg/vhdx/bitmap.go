package vhdx

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"sync/atomic"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// A sector bitmap block says of each sector of a chunk whether a partially
// present block holds it (1) or its parent does (0). Pages of it are read when
// they are first needed and stay in memory: 1/4096 of the partially present
// part of the disk at 512 bytes a sector.

const (
	bitsPerPage     = ondisk.PageSize * 8
	wordsPerPage    = ondisk.PageSize / 8
	pagesPerBitmap  = ondisk.BitmapBlockSize / ondisk.PageSize
	sectorsPerChunk = ondisk.SectorsPerBitmap
)

// bitmapPage is a page of a sector bitmap, accessed atomically. Bits change
// under space.mu.
type bitmapPage [wordsPerPage]uint64

// bitmapChunk is a sector bitmap block; pages not read yet are nil.
type bitmapChunk [pagesPerBitmap]atomic.Pointer[bitmapPage]

func (p *bitmapPage) decode(b []byte) {
	for i := range p {
		p[i] = binary.LittleEndian.Uint64(b[i*8:])
	}
}

func (p *bitmapPage) encode(b []byte) {
	for i := range p {
		binary.LittleEndian.PutUint64(b[i*8:], atomic.LoadUint64(&p[i]))
	}
}

// run returns the state of bit i and for how many bits from it, at most n and
// inside the page, the state is the same.
func (p *bitmapPage) run(i, n int64) (set bool, length int64) {
	n = min(n, bitsPerPage-i)
	word := atomic.LoadUint64(&p[i/64])
	set = word>>(i%64)&1 != 0
	if set {
		word = ^word
	}
	// A bit that is set in word now is one that ends the run.
	if rest := word >> (i % 64); rest != 0 {
		return set, min(n, int64(bits.TrailingZeros64(rest)))
	}
	for length = 64 - i%64; length < n; length += 64 {
		word = atomic.LoadUint64(&p[(i+length)/64])
		if set {
			word = ^word
		}
		if word != 0 {
			return set, min(n, length+int64(bits.TrailingZeros64(word)))
		}
	}
	return set, n
}

// change sets or clears n bits from i on.
func (p *bitmapPage) change(i, n int64, set bool) {
	for end := i + n; i < end; {
		mask, next := wordMask(i, end)
		if set {
			atomic.OrUint64(&p[i/64], mask)
		} else {
			atomic.AndUint64(&p[i/64], ^mask)
		}
		i = next
	}
}

// sectors is a run of logical sectors of the virtual disk.
type sectors struct{ first, count int64 }

// eachPage calls do for the part of s in each page of the sector bitmaps.
func (s sectors) eachPage(do func(page, bit, n int64) error) error {
	for end := s.first + s.count; s.first < end; {
		bit := s.first % bitsPerPage
		n := min(end-s.first, bitsPerPage-bit)
		if err := do(s.first/bitsPerPage, bit, n); err != nil {
			return err
		}
		s.first += n
	}
	return nil
}

func (im *Image) sectorsOf(off, n int64) sectors {
	lss := int64(im.metadata.logicalSectorSize)
	return sectors{off / lss, n / lss}
}

// loadedPage returns a page of the sector bitmaps, numbered over all chunks,
// or nil if it has not been read.
func (b *bat) loadedPage(number int64) *bitmapPage {
	c := b.bitmaps[number/pagesPerBitmap].Load()
	if c == nil {
		return nil
	}
	return c[number%pagesPerBitmap].Load()
}

// bitmapPage returns a page of the sector bitmaps, from the file if need be.
// The chunk's bitmap block is present.
func (im *Image) bitmapPage(b *bat, number int64) (*bitmapPage, error) {
	if p := b.loadedPage(number); p != nil {
		return p, nil
	}
	chunk := number / pagesPerBitmap
	at := b.at(b.geometry.BitmapIndex(chunk)).Offset() + number%pagesPerBitmap*ondisk.PageSize
	buf := alignedBytes(ondisk.PageSize)
	if err := readFull(im.f, buf, at); err != nil {
		return nil, corruptRead(im.f, fmt.Sprintf("sector bitmap of chunk %d", chunk), at, err)
	}
	p := new(bitmapPage)
	p.decode(buf)
	return b.keepPage(number, p), nil
}

// keepPage stores a page unless another was first, and returns the one kept.
func (b *bat) keepPage(number int64, p *bitmapPage) *bitmapPage {
	slot := &b.bitmaps[number/pagesPerBitmap]
	if slot.Load() == nil {
		slot.CompareAndSwap(nil, new(bitmapChunk))
	}
	page := &slot.Load()[number%pagesPerBitmap]
	if page.CompareAndSwap(nil, p) {
		return p
	}
	return page.Load()
}

// presence returns whether the sector at off, in a partially present block, is
// in this file, and for how many bytes from it on, at most n, that holds. Off
// need not be a sector's first byte.
func (im *Image) presence(b *bat, off, n int64) (present bool, length int64, err error) {
	lss := int64(im.metadata.logicalSectorSize)
	skip := off % lss
	s := sectors{off / lss, (skip + n + lss - 1) / lss}
	for length < n {
		p, err := im.bitmapPage(b, s.first/bitsPerPage)
		if err != nil {
			return false, 0, err
		}
		set, run := p.run(s.first%bitsPerPage, s.count)
		if length > 0 && set != present {
			break
		}
		present = set
		length = min(n, length+run*lss-skip)
		if (s.first+run)%bitsPerPage != 0 {
			break // it ended inside the page
		}
		s, skip = sectors{s.first + run, s.count - run}, 0
	}
	return present, length, nil
}

// allPresent reports whether every sector of a range in a partially present
// block is in this file, as far as memory knows: it does no I/O.
func (im *Image) allPresent(b *bat, off, n int64) bool {
	lss := int64(im.metadata.logicalSectorSize)
	s := sectors{off / lss, (off%lss + n + lss - 1) / lss}
	return s.eachPage(func(page, bit, n int64) error {
		if p := b.loadedPage(page); p != nil {
			if set, run := p.run(bit, n); set && run == n {
				return nil
			}
		}
		return errAbsent
	}) == nil
}

var errAbsent = fmt.Errorf("a sector is not present")

// loadBits reads the bitmap pages of a range, so that marking it needs no I/O.
// The chunk's bitmap block, where it is not present yet, reads zero.
func (im *Image) loadBits(b *bat, s sectors) error {
	return s.eachPage(func(page, _, _ int64) error {
		if b.at(b.geometry.BitmapIndex(page/pagesPerBitmap)).State() != ondisk.BitmapPresent {
			b.keepPage(page, new(bitmapPage))
			return nil
		}
		_, err := im.bitmapPage(b, page)
		return err
	})
}

// markBits sets or clears bits in memory and marks their pages dirty. The
// pages are loaded. Caller holds space.mu.
func (im *Image) markBits(b *bat, s sectors, set bool) {
	_ = s.eachPage(func(page, bit, n int64) error { // the closure never fails
		b.loadedPage(page).change(bit, n, set)
		im.space.dirtyBits[page] = struct{}{}
		return nil
	})
}

// ensureBitmap gives the chunk of a block space for its sector bitmap, which
// becomes part of the table together with the first block that needs it. The
// space is proven zero, and made real: a page of it is metadata (I-SYNC-3).
func (im *Image) ensureBitmap(b *bat, chunk int64) error {
	s := &im.space
	has := func() bool {
		_, prepared := s.bitmaps[chunk]
		return prepared || im.bat.Load().at(b.geometry.BitmapIndex(chunk)).State() == ondisk.BitmapPresent
	}
	s.mu.Lock()
	done := has()
	s.mu.Unlock()
	if done {
		return nil
	}
	off, err := im.take(ondisk.BitmapBlockSize)
	if err != nil {
		return fmt.Errorf("%s: a sector bitmap for chunk %d: %w", im.name, chunk, err)
	}
	err = im.allocate(off, ondisk.BitmapBlockSize)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err != nil:
		im.retire(extent{off, ondisk.BitmapBlockSize})
		return fmt.Errorf("%s: a sector bitmap for chunk %d: %w", im.name, chunk, err)
	case has():
		s.release(extent{off, ondisk.BitmapBlockSize}) // another writer was first; still proven zero
	default:
		s.bitmaps[chunk] = off
	}
	return nil
}
