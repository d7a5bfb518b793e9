package devtest

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// testDirectIO compares with a byte model: reads and writes of all sizes from
// a sector to more than one FUSE or NBD request, at any sector.
func testDirectIO(t *testing.T, b Backend) {
	for _, sector := range []int64{512, 4096} {
		t.Run(fmt.Sprint(sector), func(t *testing.T) {
			size := 32*mib + sector
			im := b.NewImage(t, size, int(sector))
			d := attach(t, b, im)
			f := open(t, d, unix.O_DIRECT)
			model := make([]byte, size)
			buf := aligned(4 * mib)
			r := random(t)
			for range steps(400) {
				off, n := someRange(r, size, sector)
				p := buf[:n]
				if r.IntN(2) == 0 {
					fill(r, p)
					if _, err := f.WriteAt(p, off); err != nil {
						t.Fatal(err)
					}
					copy(model[off:], p)
					continue
				}
				if _, err := f.ReadAt(p, off); err != nil {
					t.Fatal(err)
				}
				differ(t, "read", p, model[off:off+n], off)
			}
			readAll(t, f, model)
			if err := f.sync(); err != nil {
				t.Fatal(err)
			}
			imageHolds(t, im, model)
		})
	}
}

// someRange is a range of whole units, short ones as often as long ones.
func someRange(r *rand.Rand, size, unit int64) (off, n int64) {
	limit := int64(1) << (r.IntN(14) + 9) // 512 bytes to 4 MiB
	n = max(unit, (r.Int64N(limit)+1)/unit*unit)
	off = r.Int64N((size-n)/unit+1) * unit
	return off, n
}

func readAll(t *testing.T, f *file, model []byte) {
	t.Helper()
	buf := aligned(mib)
	for off := int64(0); off < int64(len(model)); off += mib {
		p := buf[:min(mib, int64(len(model))-off)]
		if _, err := f.ReadAt(p, off); err != nil {
			t.Fatal(err)
		}
		differ(t, "device", p, model[off:off+int64(len(p))], off)
	}
}

// imageHolds checks what has reached the image itself.
func imageHolds(t *testing.T, im Image, model []byte) {
	t.Helper()
	buf := aligned(mib)
	for off := int64(0); off < int64(len(model)); off += mib {
		p := buf[:min(mib, int64(len(model))-off)]
		if n, err := im.ReadAt(p, off); n != len(p) {
			t.Fatal(err)
		}
		differ(t, "image", p, model[off:off+int64(len(p))], off)
	}
}

// testBuffered goes through the page cache, at any byte.
func testBuffered(t *testing.T, b Backend) {
	const size = 32 * mib
	im := b.NewImage(t, size, 512)
	d := attach(t, b, im)
	f := open(t, d, 0)
	model := make([]byte, size)
	buf := make([]byte, 4*mib)
	r := random(t)
	for i := range steps(400) {
		off, n := someRange(r, size, 1)
		p := buf[:n]
		if r.IntN(2) == 0 {
			fill(r, p)
			if _, err := f.WriteAt(p, off); err != nil {
				t.Fatal(err)
			}
			copy(model[off:], p)
		} else {
			if _, err := f.ReadAt(p, off); err != nil {
				t.Fatal(err)
			}
			differ(t, "read", p, model[off:off+n], off)
		}
		if i%100 == 99 {
			if err := f.sync(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := f.sync(); err != nil {
		t.Fatal(err)
	}
	imageHolds(t, im, model)
}

// testNarrow writes neighbouring sectors of the same few pages at once, and
// whole pages beside them: where the image changes a page as a whole, nothing
// of another sector may get lost.
func testNarrow(t *testing.T, b Backend) {
	const (
		pages   = 4
		writers = 8 // writer i owns sector i of every page
		rounds  = 150
	)
	im := b.NewImage(t, 4*mib, 512)
	d := attach(t, b, im)
	f := open(t, d, unix.O_DIRECT)
	var wg sync.WaitGroup
	for i := range int64(writers) {
		wg.Go(func() {
			p, got := aligned(512), aligned(512)
			for round := range uint64(steps(rounds)) {
				off := int64(round%pages)*4096 + i*512
				for j := 0; j < 512; j += 8 {
					binary.LittleEndian.PutUint64(p[j:], round<<8|uint64(i))
				}
				if _, err := f.WriteAt(p, off); err != nil {
					t.Error(err)
					return
				}
				if _, err := f.ReadAt(got, off); err != nil {
					t.Error(err)
					return
				}
				if string(got) != string(p) {
					t.Errorf("sector at %#x lost the write of round %d", off, round)
					return
				}
			}
		})
	}
	// Pages next to those, written whole, by whom no unit is shared.
	wg.Go(func() {
		p := aligned(4096)
		for round := range rounds {
			if _, err := f.WriteAt(p, int64(pages+round%pages)*4096); err != nil {
				t.Error(err)
				return
			}
		}
	})
	wg.Wait()
}

// testConcurrent is random I/O at depth 32, each block checked when read: it
// must hold what was written there last, and nothing of another block.
func testConcurrent(t *testing.T, b Backend) {
	const (
		size    = 64 * mib
		workers = 32
		ops     = 300
	)
	im := b.NewImage(t, size, 512)
	d := attach(t, b, im)
	f := open(t, d, unix.O_DIRECT)
	region := size / workers
	var wg sync.WaitGroup
	for id := range int64(workers) {
		wg.Go(func() {
			w := verifier{f: f, base: id * region, blocks: region / 4096, seq: map[int64]uint64{}}
			if err := w.run(rand.New(rand.NewPCG(uint64(id), 1)), steps(ops)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// verifier does random I/O in a region of its own.
type verifier struct {
	f      *file
	base   int64
	blocks int64
	seq    map[int64]uint64 // of what was last written, by block
}

func (v *verifier) run(r *rand.Rand, ops int) error {
	buf := aligned(64 << 10)
	for i := range ops {
		n := int64(1) << r.IntN(5) // 1 to 16 blocks
		first := r.Int64N(v.blocks - n + 1)
		p := buf[:n*4096]
		off := v.base + first*4096
		if r.IntN(2) == 0 {
			for j := range n {
				v.seq[first+j] = uint64(i) + 1
				stamp(p[j*4096:(j+1)*4096], off+j*4096, uint64(i)+1)
			}
			if _, err := v.f.WriteAt(p, off); err != nil {
				return err
			}
			continue
		}
		if _, err := v.f.ReadAt(p, off); err != nil {
			return err
		}
		want := make([]byte, 4096)
		for j := range n {
			stamp(want, off+j*4096, v.seq[first+j])
			if string(p[j*4096:(j+1)*4096]) != string(want) {
				return fmt.Errorf("block at %#x does not hold write %d", off+j*4096, v.seq[first+j])
			}
		}
	}
	return nil
}

// stamp makes a block that says where it belongs; a block never written is zero.
func stamp(p []byte, off int64, seq uint64) {
	clear(p)
	if seq == 0 {
		return
	}
	for i := 0; i < len(p); i += 16 {
		binary.LittleEndian.PutUint64(p[i:], uint64(off)+uint64(i))
		binary.LittleEndian.PutUint64(p[i+8:], seq)
	}
}
