package vhdx

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

type nameOnly struct{ File }

func (nameOnly) Name() string { return "x" }

// randomTable is mostly runs of present blocks, with holes, other states,
// claims that clash and blocks beyond the end of the file.
func randomTable(r *rand.Rand, g ondisk.Geometry, fileMiB int64) []byte {
	p := make([]byte, g.Entries()*ondisk.BATEntrySize)
	step, at := g.BlockSize/ondisk.MiB, 8+r.Int64N(4)
	clashes := r.IntN(3) == 0
	for index := range g.Entries() {
		e := ondisk.MakeBATEntry(ondisk.BlockFullyPresent, at*ondisk.MiB)
		switch n := r.IntN(200); {
		case g.IsBitmap(index) && n < 150, n < 4:
			e = 0
		case n == 4 && clashes:
			e = []ondisk.BATEntry{ondisk.BATEntry(r.Uint64()), ^ondisk.BATEntry(0)}[r.IntN(2)]
		case n < 7:
			e = ondisk.MakeBATEntry([]ondisk.BlockState{ondisk.BlockZero, ondisk.BlockUnmapped, 5}[r.IntN(3)], 0)
		case n == 7 && clashes:
			e = ondisk.MakeBATEntry(ondisk.BlockFullyPresent, r.Int64N(fileMiB)*ondisk.MiB)
		case n == 8:
			at += r.Int64N(8)
			e = ondisk.MakeBATEntry(ondisk.BlockFullyPresent, at*ondisk.MiB)
			at += step
		default:
			at += step
		}
		binary.LittleEndian.PutUint64(p[index*ondisk.BATEntrySize:], uint64(e))
	}
	return p
}

// A table whose runs are claimed at once is judged as entry by entry: the same
// entries, the same space, and the same entry at fault.
func TestReadEntriesInRuns(t *testing.T) {
	faults, runs := 0, 0
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 7))
		g := ondisk.Geometry{VirtualSize: (1 + r.Int64N(900)) * 32 * ondisk.MiB, BlockSize: 32 * ondisk.MiB, LogicalSectorSize: 512, HasParent: r.IntN(4) == 0}
		fileEnd := (r.Int64N(1000)*32 + 40) * ondisk.MiB
		table := randomTable(r, g, fileEnd/ondisk.MiB)

		one := newLayout(fileEnd)
		want, fault := make([]uint64, g.Entries()), int64(-1)
		for i := range g.Entries() {
			e := ondisk.DecodeBATEntry(table, int(i))
			if e == 0 {
				continue
			}
			kept, err := one.place(g, i, e)
			if err != nil {
				fault = i
				break
			}
			want[i] = uint64(kept)
		}

		im := &Image{f: nameOnly{}}
		load := batLoad{im: im, b: newBAT(g, 0, int64(len(table))), l: newLayout(fileEnd), next: noRun, bitmap: g.ChunkRatio()}
		for i := range load.b.entries {
			load.b.entries[i] = uint64(ondisk.DecodeBATEntry(table, i))
		}
		cut := r.Int64N(g.Entries() + 1)
		err := load.chunk(0, cut)
		if err == nil {
			err = load.chunk(cut, g.Entries())
		}
		runs = max(runs, int(load.length/g.BlockSize))
		if err == nil {
			err = load.flush(g.Entries())
		}
		if fault >= 0 {
			faults++
			bad, ok := errors.AsType[*CorruptError](err)
			if !ok || bad.Offset != fault*ondisk.BATEntrySize {
				t.Fatalf("seed %d: %v, want entry %d at fault", seed, err, fault)
			}
			continue
		}
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if !slices.Equal(load.b.entries, want) || !slices.Equal(load.l.used.ranges(fileEnd), one.used.ranges(fileEnd)) || load.l.end != one.end {
			t.Fatalf("seed %d: differs from entry by entry", seed)
		}
	}
	if faults < 40 || faults > 360 || runs < 50 {
		t.Fatalf("%d of 400 tables at fault, longest last run %d: the test does not test much", faults, runs)
	}
}

// ranges are the unclaimed ranges below end.
func (m *spaceMap) ranges(end int64) (free []extent) {
	_ = m.gaps(end, func(e extent) error { free = append(free, e); return nil }) // fails never
	return free
}
