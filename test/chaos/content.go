package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
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

// wordOf has the sector's number in its upper bits and the generation in the
// lower ones; the last nine count the words.
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

// mergePages turns pages into ranges of bytes.
func mergePages(pages map[int64]bool) []span {
	var runs []span
	for _, p := range slices.Sorted(maps.Keys(pages)) {
		if n := len(runs); n > 0 && runs[n-1].off+runs[n-1].n == p*pageSize {
			runs[n-1].n += pageSize
			continue
		}
		runs = append(runs, span{p * pageSize, pageSize})
	}
	return runs
}
