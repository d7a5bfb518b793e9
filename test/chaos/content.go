package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"unsafe"
)

const (
	sectorSize     = 512
	pageSize       = 4096
	sectorsPerPage = pageSize / sectorSize
)

// fill makes the content of whole sectors: each says where it belongs and
// which write it is of, in every one of its words.
func fill(p []byte, off int64, gen uint32) {
	for at := 0; at < len(p); at += sectorSize {
		word := wordOf(off+int64(at), gen)
		for i := 0; i < sectorSize; i += 8 {
			binary.LittleEndian.PutUint64(p[at+i:], word+uint64(i))
		}
	}
}

// wordOf has the sector's number in its upper 24 bits, then the generation;
// the last nine count the words.
func wordOf(off int64, gen uint32) uint64 {
	return uint64(off/sectorSize)<<40 | uint64(gen)<<9
}

// holds reports whether a sector is of this generation; 0 is zeros.
func holds(p []byte, off int64, gen uint32) bool {
	if gen == 0 {
		return bytes.Equal(p, zeros[:])
	}
	word := wordOf(off, gen)
	for i := 0; i < sectorSize; i += 8 {
		if binary.LittleEndian.Uint64(p[i:]) != word+uint64(i) {
			return false
		}
	}
	return true
}

var zeros [sectorSize]byte

func describe(p []byte) string {
	if bytes.Equal(p, zeros[:]) {
		return "zeros"
	}
	word := binary.LittleEndian.Uint64(p)
	return fmt.Sprintf("generation %d of sector %#x mod 2^24", uint32(word>>9)&(1<<31-1), word>>40)
}

// space is what a writer knows of its part of a volume: the generation of each
// sector of the pages it has touched. All others read zero, for nobody ever
// wrote them.
type space map[int64]*[sectorsPerPage]uint32

func (s space) set(off, n int64, gen uint32) {
	for sector := off / sectorSize; sector < (off+n)/sectorSize; sector++ {
		page := s[sector/sectorsPerPage]
		if page == nil {
			page = new([sectorsPerPage]uint32)
			s[sector/sectorsPerPage] = page
		}
		page[sector%sectorsPerPage] = gen
	}
}

// compare calls wrong for each sector of p, which was read at off, that is not
// what it must be.
func (s space) compare(p []byte, off int64, wrong func(at int64, want uint32, got []byte)) {
	for at := int64(0); at < int64(len(p)); at += sectorSize {
		var gen uint32
		sector := (off + at) / sectorSize
		if page := s[sector/sectorsPerPage]; page != nil {
			gen = page[sector%sectorsPerPage]
		}
		if got := p[at : at+sectorSize]; !holds(got, off+at, gen) {
			wrong(off+at, gen, got)
		}
	}
}

// span is a range of bytes.
type span struct{ off, n int64 }

// runs returns the pages touched as ranges of at most limit bytes.
func (s space) runs(limit int64) []span {
	var runs []span
	for _, p := range slices.Sorted(maps.Keys(s)) {
		if n := len(runs); n > 0 && runs[n-1].off+runs[n-1].n == p*pageSize && runs[n-1].n < limit {
			runs[n-1].n += pageSize
			continue
		}
		runs = append(runs, span{p * pageSize, pageSize})
	}
	return runs
}

// forgetZeros drops the pages that are zero as if they had never been written,
// so that reading back takes no longer each time.
func (s space) forgetZeros() {
	for p, gens := range s {
		if *gens == ([sectorsPerPage]uint32{}) {
			delete(s, p)
		}
	}
}

// aligned gives memory that O_DIRECT takes.
func aligned(n int64) []byte {
	b := make([]byte, n+pageSize)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (pageSize - 1)
	return b[skip:][:n:n]
}
