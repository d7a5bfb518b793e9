package vhdx

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

const hugePage = 2 << 20

// newWords returns n words, zero. What is large gets huge pages where there
// are any: on a virtual machine the page faults of a table of 16 MiB take
// longer than to read and judge it.
func newWords(n int64) []uint64 {
	w := make([]uint64, n)
	if n*8 < hugePage {
		return w
	}
	b := bytesOf(w)
	if skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (hugePage - 1); skip < len(b) {
		if b = b[skip:]; len(b) >= hugePage {
			_ = unix.Madvise(b[:len(b)&^(hugePage-1)], unix.MADV_HUGEPAGE) // a hint
		}
	}
	return w
}

// bytesOf is the memory of some words.
func bytesOf(w []uint64) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(w))), len(w)*8)
}

// wordsOf is memory as words; it begins at a multiple of 8.
func wordsOf(b []byte) []uint64 {
	return unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/8)
}

// readWords reads little-endian words.
func readWords(f File, w []uint64, off int64) error {
	b := bytesOf(w)
	if err := readFull(f, b, off); err != nil {
		return err
	}
	if littleEndian {
		return nil
	}
	for i := range w {
		w[i] = binary.LittleEndian.Uint64(b[i*8:])
	}
	return nil
}

// runLength returns how many words from the first on, which is next, are step
// more than the one before.
func runLength(w []uint64, next, step uint64) int {
	n := 0
	for ; len(w)-n >= 4; n += 4 {
		q := w[n : n+4 : n+4]
		if q[0] != next || q[1] != next+step || q[2] != next+2*step || q[3] != next+3*step {
			break
		}
		next += 4 * step
	}
	for ; n < len(w) && w[n] == next; n++ {
		next += step
	}
	return n
}

// zeroLength returns how many words from the first on are zero.
func zeroLength(w []uint64) int {
	n := 0
	for ; len(w)-n >= 8; n += 8 {
		q := w[n : n+8 : n+8]
		if q[0]|q[1]|q[2]|q[3]|q[4]|q[5]|q[6]|q[7] != 0 {
			break
		}
	}
	for ; n < len(w) && w[n] == 0; n++ {
	}
	return n
}

var littleEndian = binary.NativeEndian.Uint16([]byte{1, 0}) == 1
