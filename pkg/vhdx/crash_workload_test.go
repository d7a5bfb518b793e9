package vhdx_test

import (
	"math/rand/v2"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

const kib = int64(1) << 10

// workload is a kind of use of an image.
type workload struct {
	name   string
	create vhdx.CreateOptions
	growth int64
	// blocks are those that are written; weights say how often each thing is done.
	blocks  []int64
	weights weights
	maxIO   int64
	grow    func(r *rand.Rand, size int64) int64
	// warm operations run before the first cut, ops with cuts.
	warm, ops int
	writers   int   // at once; 0: one after the other
	images    int   // at each step; 0: as the harness says
	sparse    int   // of the steps that write payload only one in so many is cut
	fills     []int // blocks that one fill after the other writes
	journal   bool  // a kill loses nothing, at any step
	// child, if set, is what is used: create then is its parent, in which each
	// of the blocks has some data.
	child *vhdx.ChildOptions
	stale bool // the child's sector bitmaps are full of bits that mean nothing
	// foreign blocks behind the end of the child's disk are in its table, as
	// another program may leave them.
	foreign   []int64
	maxCopied int // pages of the child's table at once; 0: as always
}

// blockSize is that of the image that is used.
func (k *workload) blockSize() int64 {
	if k.child != nil {
		return k.child.BlockSize
	}
	return k.create.BlockSize
}

type weights struct{ write, rewrite, zero, discard, flush, grow, reopen, kill, spoil, fill, trim, straggle, shrink, compact int }

var goOnWorkload = &workload{
	name:    "go on",
	weights: weights{write: 6, rewrite: 2, zero: 1, trim: 1, flush: 4, grow: 1},
	maxIO:   64 * kib,
}

func sequence(n, step int64) []int64 {
	var all []int64
	for i := range n {
		all = append(all, i*step)
	}
	return all
}

// growBy grows by up to n bytes.
func growBy(n int64) func(*rand.Rand, int64) int64 {
	return func(r *rand.Rand, size int64) int64 { return size + (1+r.Int64N(n/4096))*4096 }
}

var workloads = []*workload{
	{
		name:    "few blocks",
		create:  vhdx.CreateOptions{Size: 8*mib + 3*4096, BlockSize: mib},
		growth:  mib,
		blocks:  sequence(6, 1),
		weights: weights{write: 10, rewrite: 4, zero: 1, discard: 1, flush: 5, grow: 1, reopen: 1, kill: 1},
		maxIO:   64 * kib, ops: 60,
		grow: growBy(2 * mib),
	},
	{
		name:    "larger blocks, 4 KiB sectors",
		create:  vhdx.CreateOptions{Size: 64 * mib, BlockSize: 4 * mib, LogicalSectorSize: 4096},
		growth:  8 * mib,
		blocks:  sequence(8, 2),
		weights: weights{write: 10, rewrite: 2, zero: 2, discard: 2, flush: 6, reopen: 1},
		maxIO:   256 * kib, ops: 50,
	},
	{
		name:    "fixed",
		create:  vhdx.CreateOptions{Size: 3*mib + 512, BlockSize: mib, Fixed: true},
		growth:  2 * mib,
		blocks:  sequence(4, 1),
		weights: weights{write: 8, rewrite: 4, zero: 2, discard: 1, flush: 5, grow: 2, reopen: 1, kill: 1},
		maxIO:   32 * kib, ops: 45,
		grow: growBy(2 * mib),
	},
	{
		// Each block in a BAT page of its own: an entry of up to 17 sectors
		// a flush goes round a log of 256 in less than 20.
		name:    "log goes round",
		create:  vhdx.CreateOptions{Size: 24 * gib, BlockSize: mib},
		growth:  16 * mib,
		blocks:  append(append(sequence(44, 512), sequenceFrom(1, 44, 512)...), sequenceFrom(2, 44, 512)...),
		weights: weights{write: 20, flush: 1},
		maxIO:   512, warm: 150, ops: 170, images: 8,
	},
	{
		// Each flush ends a lap of the log. The second finds its head so that
		// the next lap's first entry reaches the place where the last ended.
		name:    "log is full",
		create:  vhdx.CreateOptions{Size: 81 * gib, BlockSize: mib},
		growth:  256 * mib,
		blocks:  sequence(160, 512),
		weights: weights{fill: 1},
		ops:     4, images: 12, sparse: 32, fills: []int{125, 140, 110, 160},
	},
	{
		// One flush takes several entries, and a lap ends between them.
		name:    "more than the log",
		create:  vhdx.CreateOptions{Size: 127 * gib, BlockSize: mib},
		growth:  512 * mib,
		blocks:  sequence(254, 512),
		weights: weights{fill: 1},
		ops:     2, images: 4, sparse: 32, fills: []int{254},
	},
	{
		name:    "BAT moves",
		create:  vhdx.CreateOptions{Size: 127*gib + 512*mib, BlockSize: mib},
		growth:  4 * mib,
		blocks:  []int64{0, 1, 513, 131000},
		weights: weights{write: 8, rewrite: 2, flush: 4, grow: 3, reopen: 1, kill: 1},
		maxIO:   4 * kib, ops: 40,
		grow: growBy(gib),
	},
	{
		// The place of the table that moved gets another owner.
		name:    "BAT moves and the log goes round",
		create:  vhdx.CreateOptions{Size: 127*gib + 512*mib, BlockSize: mib},
		growth:  256 * mib,
		blocks:  sequence(200, 512),
		weights: weights{fill: 4, grow: 2, trim: 1, flush: 1},
		ops:     9, images: 5, sparse: 32, fills: []int{110, 60, 125},
		grow: growBy(gib),
	},
	{
		name:    "journal",
		create:  vhdx.CreateOptions{Size: 16 * mib, BlockSize: mib},
		growth:  8 * mib,
		blocks:  sequence(16, 1),
		weights: weights{write: 12, rewrite: 2, flush: 3, kill: 1, reopen: 1},
		maxIO:   8 * kib, ops: 60, images: 4, journal: true,
	},
	{
		name:    "child",
		create:  vhdx.CreateOptions{Size: 8*mib + 3*4096, BlockSize: mib},
		child:   &vhdx.ChildOptions{BlockSize: 2 * mib},
		growth:  mib,
		blocks:  sequence(4, 1),
		weights: weights{write: 10, rewrite: 4, zero: 2, discard: 2, flush: 5, reopen: 1, kill: 1},
		maxIO:   64 * kib, ops: 60,
	},
	{
		// Bits and blocks of many pages: one flush takes several entries.
		name:    "child and more than one entry",
		create:  vhdx.CreateOptions{Size: 4 * gib, BlockSize: 16 * mib},
		child:   &vhdx.ChildOptions{BlockSize: mib},
		growth:  256 * mib,
		blocks:  sequence(150, 16),
		weights: weights{fill: 1},
		ops:     2, images: 6, sparse: 64, fills: []int{150, 40}, stale: true,
	},
	{
		// The 32nd chunk makes the table too long for its place.
		name:    "child whose BAT moves",
		create:  vhdx.CreateOptions{Size: 124*gib - 256*mib, BlockSize: 16 * mib},
		child:   &vhdx.ChildOptions{BlockSize: mib},
		growth:  4 * mib,
		blocks:  []int64{0, 1, 4097, 126000},
		weights: weights{write: 8, rewrite: 2, flush: 3, grow: 3, discard: 1, reopen: 1, kill: 1},
		maxIO:   4 * kib, ops: 30, images: 6, stale: true,
		grow: growBy(gib),
	},
	{
		// Parts of it lie where the child does not, and must never show.
		name:    "child of a larger parent",
		create:  vhdx.CreateOptions{Size: 12 * mib, BlockSize: 2 * mib},
		child:   &vhdx.ChildOptions{Size: 5*mib + 3*512, BlockSize: mib},
		growth:  mib,
		blocks:  sequence(12, 1),
		weights: weights{write: 10, rewrite: 1, zero: 1, flush: 3, trim: 1, grow: 4, shrink: 4, reopen: 1, kill: 1},
		maxIO:   16 * kib, ops: 60, images: 8, stale: true,
		grow: growBy(4 * mib),
	},
	{
		name:    "child of a larger parent and a journal",
		create:  vhdx.CreateOptions{Size: 12 * mib, BlockSize: 4 * mib},
		child:   &vhdx.ChildOptions{Size: 5*mib + 512, BlockSize: 2 * mib},
		growth:  8 * mib,
		blocks:  sequence(6, 1),
		weights: weights{write: 8, zero: 1, flush: 1, trim: 1, grow: 2, shrink: 2, kill: 1, reopen: 1},
		maxIO:   8 * kib, ops: 50, images: 4, journal: true,
		grow: growBy(4 * mib),
	},
	{
		// Whole chunks come and go, with their sector bitmaps.
		name:    "child whose chunks go",
		create:  vhdx.CreateOptions{Size: 14 * gib, BlockSize: 16 * mib},
		child:   &vhdx.ChildOptions{Size: 9*gib + 512, BlockSize: 4 * mib},
		growth:  16 * mib,
		blocks:  []int64{0, 1023, 1024, 1025, 2048, 2304, 2305, 3200},
		weights: weights{write: 10, flush: 3, trim: 1, grow: 3, shrink: 3, reopen: 1, kill: 1},
		maxIO:   8 * kib, ops: 40, images: 6,
		grow: growBy(6 * gib),
	},
	{
		// A chunk with a table page of its own goes, and what another program
		// has left in that comes back with nothing but a replay.
		name:    "child with leftovers behind its end",
		create:  vhdx.CreateOptions{Size: 1000 * 4 * mib, BlockSize: 16 * mib},
		child:   &vhdx.ChildOptions{Size: 1600*4*mib + 512, BlockSize: 4 * mib},
		growth:  16 * mib,
		blocks:  []int64{0, 1590, 1599, 1700, 1701},
		weights: weights{write: 4, flush: 1, grow: 3, shrink: 4, reopen: 1, kill: 1},
		maxIO:   8 * kib, ops: 25, images: 6, foreign: []int64{1700, 1701},
		grow: growBy(4 * gib),
	},
	{
		// As above, and one flush copies the table a few pages at a time.
		name:    "child and a few pages at a time",
		create:  vhdx.CreateOptions{Size: 4 * gib, BlockSize: 16 * mib},
		child:   &vhdx.ChildOptions{BlockSize: mib},
		growth:  256 * mib,
		blocks:  sequence(150, 16),
		weights: weights{fill: 1},
		ops:     2, images: 6, sparse: 64, fills: []int{150, 40}, stale: true, maxCopied: 2,
	},
	{
		name:    "child and a journal",
		create:  vhdx.CreateOptions{Size: 16 * mib, BlockSize: 4 * mib},
		child:   &vhdx.ChildOptions{BlockSize: mib},
		growth:  8 * mib,
		blocks:  sequence(16, 1),
		weights: weights{write: 12, rewrite: 2, zero: 2, flush: 3, kill: 1, reopen: 1},
		maxIO:   8 * kib, ops: 60, images: 4, journal: true,
	},
	{
		name:    "failing writes",
		create:  vhdx.CreateOptions{Size: 12 * mib, BlockSize: mib},
		growth:  2 * mib,
		blocks:  sequence(12, 1),
		weights: weights{write: 4, flush: 3, spoil: 3, reopen: 1},
		maxIO:   8 * kib, ops: 60, images: 6,
	},
	{
		// Few places for many owners.
		name:    "discards",
		create:  vhdx.CreateOptions{Size: 12 * mib, BlockSize: mib},
		growth:  2 * mib,
		blocks:  sequence(12, 1),
		weights: weights{write: 8, rewrite: 1, zero: 1, flush: 4, trim: 6, straggle: 2, reopen: 1, kill: 1},
		maxIO:   8 * kib, ops: 70, images: 8,
	},
	{
		name:    "discards and a journal",
		create:  vhdx.CreateOptions{Size: 6 * mib, BlockSize: mib},
		growth:  4 * mib,
		blocks:  sequence(6, 1),
		weights: weights{write: 8, rewrite: 1, flush: 2, trim: 6, kill: 1, reopen: 1},
		maxIO:   8 * kib, ops: 50, images: 4, journal: true,
	},
	{
		name:    "grow and shrink",
		create:  vhdx.CreateOptions{Size: 6*mib + 512, BlockSize: mib},
		growth:  mib,
		blocks:  sequence(8, 1),
		weights: weights{write: 10, rewrite: 1, zero: 1, flush: 3, trim: 1, grow: 3, shrink: 4, reopen: 1, kill: 1},
		maxIO:   16 * kib, ops: 60, images: 8,
		grow: growBy(3 * mib),
	},
	{
		name:    "grow and shrink, fixed",
		create:  vhdx.CreateOptions{Size: 4*mib + 512, BlockSize: mib, Fixed: true},
		growth:  mib,
		blocks:  sequence(6, 1),
		weights: weights{write: 10, zero: 1, flush: 3, trim: 1, grow: 2, shrink: 2, reopen: 1, kill: 1},
		maxIO:   16 * kib, ops: 40, images: 8,
		grow: growBy(2 * mib),
	},
	{
		name:    "compaction",
		create:  vhdx.CreateOptions{Size: 12 * mib, BlockSize: mib},
		growth:  2 * mib,
		blocks:  sequence(12, 1),
		weights: weights{write: 10, zero: 2, flush: 2, trim: 6, straggle: 1, compact: 3, shrink: 1, grow: 1, reopen: 1, kill: 1},
		maxIO:   16 * kib, ops: 60, images: 8,
	},
	{
		// Blocks in part the parent's are freed, moved and taken again.
		name:    "child, discards and compaction",
		create:  vhdx.CreateOptions{Size: 8 * mib, BlockSize: 2 * mib},
		child:   &vhdx.ChildOptions{BlockSize: mib},
		growth:  2 * mib,
		blocks:  sequence(8, 1),
		weights: weights{write: 10, rewrite: 1, zero: 2, discard: 1, flush: 3, trim: 5, straggle: 1, compact: 2, reopen: 1, kill: 1},
		maxIO:   16 * kib, ops: 60, images: 8, stale: true,
	},
	{
		name:    "compaction and a journal",
		create:  vhdx.CreateOptions{Size: 8 * mib, BlockSize: mib},
		growth:  4 * mib,
		blocks:  sequence(8, 1),
		weights: weights{write: 8, flush: 1, trim: 4, compact: 2, shrink: 1, grow: 1, kill: 1, reopen: 1},
		maxIO:   8 * kib, ops: 40, images: 4, journal: true,
	},
	{
		name:    "writers at once",
		create:  vhdx.CreateOptions{Size: 16 * mib, BlockSize: 2 * mib},
		growth:  2 * mib,
		blocks:  sequence(8, 1),
		weights: weights{write: 4, flush: 1},
		maxIO:   4 * kib, ops: 40, writers: 3,
	},
}

func sequenceFrom(first, n, step int64) []int64 {
	all := sequence(n, step)
	for i := range all {
		all[i] += first
	}
	return all
}

// payload is where the payload blocks begin, as long as the BAT does not move.
func (k *workload) payload() int64 {
	entries := (k.create.Size + k.blockSize() - 1) / k.blockSize()
	if k.stale {
		return 3*mib + (entries*8+mib)/mib*mib + (k.create.Size+4*gib-1)/(4*gib)*mib // behind the bitmaps
	}
	return 3*mib + (entries*8+mib)/mib*mib
}
