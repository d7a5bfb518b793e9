package vhdxtest

import (
	"hash/maphash"
	"slices"
)

const (
	pageSize   = 4096
	chunkPages = 256
	chunkSize  = pageSize * chunkPages
)

// pages is a sparse array of bytes whose clones share what neither has
// changed: a clone copies one pointer per MiB. What is not there reads zero.
//
// A page or chunk belongs to the pages whose owner it names; everybody else
// copies it before a change. A shared page is never written, its hash included,
// so clones may be used in parallel.
type pages struct {
	size   int64
	chunks []*chunk
	owner  *owner
	sum    uint64  // of the hashes of all pages not in dirty
	dirty  []*page // owned, not in sum
}

type owner struct{ _ byte } // not of size zero: pointers must differ

type chunk struct {
	owner *owner
	pages [chunkPages]*page
}

type page struct {
	owner *owner
	index int64
	hash  uint64 // valid unless stale
	stale bool   // in dirty
	lent  bool   // data is another page's or a write's, and copied before a change
	data  *[pageSize]byte
}

var (
	hashSeed = maphash.MakeSeed()
	zeroPage [pageSize]byte
)

func newPages() *pages { return &pages{owner: new(owner)} }

// clone settles the hashes first: from here on the pages are shared.
func (s *pages) clone() *pages {
	s.settle()
	s.owner = new(owner)
	return &pages{size: s.size, chunks: slices.Clone(s.chunks), owner: new(owner), sum: s.sum}
}

// share is clone for pages that are settled and never written again.
func (s *pages) share() *pages {
	return &pages{size: s.size, chunks: slices.Clone(s.chunks), owner: new(owner), sum: s.sum}
}

// settle brings sum up to date and makes zeros holes.
func (s *pages) settle() {
	for _, p := range s.dirty {
		if !p.stale {
			continue
		}
		p.stale = false
		p.hash = hashPage(p.index, p.data)
		s.sum += p.hash
		if p.hash == 0 {
			s.chunks[p.index/chunkPages].pages[p.index%chunkPages] = nil // owned, as the page is
		}
	}
	s.dirty = s.dirty[:0]
}

// hash identifies size and content (I-TEST-5).
func (s *pages) hash() uint64 {
	s.settle()
	return mix(s.sum ^ mix(uint64(s.size)))
}

// hashPage is 0 for zeros, as for a page that is not there.
func hashPage(index int64, data *[pageSize]byte) uint64 {
	if *data == zeroPage {
		return 0
	}
	return mix(maphash.Bytes(hashSeed, data[:]) ^ mix(uint64(index)))
}

// mix is the finalizer of splitmix64.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// page returns the page at index, nil where there is none.
func (s *pages) page(index int64) *page {
	c := index / chunkPages
	if c >= int64(len(s.chunks)) || s.chunks[c] == nil {
		return nil
	}
	return s.chunks[c].pages[index%chunkPages]
}

// own returns a chunk that may be changed.
func (s *pages) own(c int64) *chunk {
	for int64(len(s.chunks)) <= c {
		s.chunks = append(s.chunks, nil)
	}
	have := s.chunks[c]
	if have != nil && have.owner == s.owner {
		return have
	}
	fresh := &chunk{owner: s.owner}
	if have != nil {
		fresh.pages = have.pages
	}
	s.chunks[c] = fresh
	return fresh
}

// touch returns a page that may be changed and will be hashed anew.
func (s *pages) touch(index int64) *page {
	p := s.mark(index)
	switch {
	case p.data == nil:
		p.data = new([pageSize]byte)
	case p.lent:
		own := *p.data
		p.data = &own
	}
	p.lent = false
	return p
}

// put makes data, which nobody changes any more, a page.
func (s *pages) put(index int64, data *[pageSize]byte) {
	p := s.mark(index)
	p.data, p.lent = data, true
}

// mark returns a page that will be hashed anew. Its data may be lent or not be there.
func (s *pages) mark(index int64) *page {
	slot := &s.own(index / chunkPages).pages[index%chunkPages]
	have := *slot
	switch {
	case have == nil:
		*slot = &page{owner: s.owner, index: index}
	case have.owner != s.owner:
		*slot = &page{owner: s.owner, index: index, data: have.data, lent: true}
		s.sum -= have.hash
	case have.stale:
		return have
	default:
		s.sum -= have.hash
	}
	p := *slot
	p.stale = true
	s.dirty = append(s.dirty, p)
	return p
}

// drop makes a page a hole.
func (s *pages) drop(index int64) {
	have := s.page(index)
	if have == nil {
		return
	}
	if have.owner == s.owner && have.stale {
		have.stale = false // its entry in dirty is dead
	} else {
		s.sum -= have.hash
	}
	s.own(index / chunkPages).pages[index%chunkPages] = nil
}

// readAt fills p, whatever the size is.
func (s *pages) readAt(p []byte, off int64) {
	for len(p) > 0 {
		at := off % pageSize
		n := min(int64(len(p)), pageSize-at)
		if pg := s.page(off / pageSize); pg != nil {
			copy(p[:n], pg.data[at:])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+n
	}
}

// writeAt leaves the size alone. Nobody changes p afterwards.
func (s *pages) writeAt(p []byte, off int64) {
	for len(p) > 0 {
		at := off % pageSize
		n := min(int64(len(p)), pageSize-at)
		if n == pageSize {
			s.put(off/pageSize, (*[pageSize]byte)(p))
		} else {
			copy(s.touch(off / pageSize).data[at:], p[:n])
		}
		p, off = p[n:], off+n
	}
}

// zero makes a range read zero.
func (s *pages) zero(off, length int64) {
	length = min(length, int64(len(s.chunks))*chunkSize-off)
	for length > 0 {
		at := off % pageSize
		n := min(length, pageSize-at)
		index := off / pageSize
		switch {
		case off%chunkSize == 0 && length >= chunkSize && s.chunks[off/chunkSize] == nil:
			n = chunkSize
		case n == pageSize:
			s.drop(index)
		case s.page(index) != nil:
			clear(s.touch(index).data[at : at+n])
		}
		off, length = off+n, length-n
	}
}

// truncate sets the size; what lies beyond it is gone.
func (s *pages) truncate(size int64) {
	s.zero(size, int64(len(s.chunks))*chunkSize-size)
	s.size = size
	s.chunks = s.chunks[:min(int64(len(s.chunks)), (size+chunkSize-1)/chunkSize)]
}

// each calls f with every page that overlaps [from, to) and is not a hole.
func (s *pages) each(from, to int64, f func(off int64, data []byte) error) error {
	to = min(to, int64(len(s.chunks))*chunkSize)
	for off := from - from%pageSize; off < to; off += pageSize {
		if s.chunks[off/chunkSize] == nil {
			off += chunkSize - pageSize - off%chunkSize
			continue
		}
		if p := s.page(off / pageSize); p != nil {
			if err := f(off, p.data[:]); err != nil {
				return err
			}
		}
	}
	return nil
}

// next returns the first offset in [off, end) that is in no hole, or end.
func (s *pages) next(off, end int64) int64 {
	for at := off; at < end; at += pageSize - at%pageSize {
		c := at / chunkSize
		switch {
		case c >= int64(len(s.chunks)):
			return end
		case s.chunks[c] == nil:
			at = (c+1)*chunkSize - pageSize
		case s.page(at/pageSize) != nil:
			return at
		}
	}
	return end
}

// difference returns the offset of the first page at or above from where the
// two differ, or -1.
func (s *pages) difference(o *pages, from int64) int64 {
	for c := from / chunkSize; c < int64(max(len(s.chunks), len(o.chunks))); c++ {
		if c < int64(len(s.chunks)) && c < int64(len(o.chunks)) && s.chunks[c] == o.chunks[c] {
			continue
		}
		for i := max(c*chunkPages, from/pageSize); i < (c+1)*chunkPages; i++ {
			if !samePage(s.page(i), o.page(i)) {
				return i * pageSize
			}
		}
	}
	return -1
}

func samePage(a, b *page) bool {
	switch {
	case a == b:
		return true
	case a == nil:
		return *b.data == zeroPage
	case b == nil:
		return *a.data == zeroPage
	}
	return a.data == b.data || *a.data == *b.data
}
