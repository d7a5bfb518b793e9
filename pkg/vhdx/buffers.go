package vhdx

import (
	"sync"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// mibs are buffers of a MiB, aligned for direct I/O. All files share them: one
// each would be 64 MiB for a chain of 64, and a new one costs more to make than
// most things that are read into it.
var mibs = sync.Pool{New: func() any { b := alignedBytes(ondisk.MiB); return &b }}

// borrowMiB returns a buffer with anything in it, and what gives it back.
func borrowMiB() (buf []byte, giveBack func()) {
	b := mibs.Get().(*[]byte)
	return *b, func() { mibs.Put(b) }
}

// bitset is a set of small numbers.
type bitset []uint64

func newBitset(n int64) bitset { return make(bitset, (n+63)/64) }

func (b bitset) add(i uint32) { b[i/64] |= 1 << (i % 64) }

func (b bitset) has(i uint32) bool { return b[i/64]>>(i%64)&1 != 0 }
