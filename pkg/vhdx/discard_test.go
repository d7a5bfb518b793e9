package vhdx_test

import (
	"bytes"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

// memory is an image on a file in memory.
type memory struct {
	*vhdx.Image
	t    *testing.T
	file *vhdxtest.File
}

func newMemory(t *testing.T, o vhdx.CreateOptions) *memory {
	t.Helper()
	m := &memory{t: t, file: vhdxtest.NewFile("disk.vhdx")}
	if _, err := vhdx.CreateOn(m.file, o); err != nil {
		t.Fatal(err)
	}
	m.open(m.file)
	return m
}

func (m *memory) open(f vhdx.File) {
	m.t.Helper()
	var err error
	if m.Image, err = vhdx.Open(f, vhdx.OpenOptions{GrowthStep: mib}.NoTimers()); err != nil {
		m.t.Fatal(err)
	}
}

func (m *memory) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// fill writes a block full of b.
func (m *memory) fill(block int64, b byte) {
	m.t.Helper()
	_, err := m.WriteAt(bytes.Repeat([]byte{b}, int(mib)), block*mib)
	m.must(err)
}

// flush commits, and waits for what follows.
func (m *memory) flush() {
	m.t.Helper()
	m.must(m.Flush())
	m.Idle()
}

func (m *memory) size() int64 {
	m.t.Helper()
	size, err := m.file.Size()
	m.must(err)
	return size
}

// closed returns the layout after Close.
func (m *memory) closed() *vhdxtest.Layout {
	m.t.Helper()
	m.must(m.Close())
	l, err := vhdxtest.ReadLayout(m.file.Clone())
	m.must(err)
	return l
}

// Writing new blocks and discarding old ones for ever takes no more space than
// the blocks that live at once, and what the freeing is under way for.
func TestFreedSpaceIsReused(t *testing.T) {
	m := newMemory(t, vhdx.CreateOptions{Size: 1024 * mib, BlockSize: mib})
	for block := range int64(400) {
		m.fill(block, byte(block))
		if block >= 4 {
			m.must(m.Discard((block-4)*mib, mib))
		}
		m.flush()
	}
	if size := m.size(); size > 20*mib {
		t.Errorf("4 blocks live and the file has %#x bytes", size)
	}
	p := make([]byte, mib)
	for block := range int64(400) {
		if _, err := m.ReadAt(p, block*mib); err != nil {
			t.Fatal(err)
		}
		want := make([]byte, mib)
		if block >= 396 {
			want = bytes.Repeat([]byte{byte(block)}, int(mib))
		}
		if !bytes.Equal(p, want) {
			t.Fatalf("block %d holds %x...", block, p[:8])
		}
	}
	if l := m.closed(); len(l.Blocks) != 4 {
		t.Errorf("%d blocks have space after Close, want 4", len(l.Blocks))
	}
}

// The space of a discarded block stays its own until a flush, and then until
// those who could reach it have left (I-SPACE-4).
func TestFreedSpaceWaitsForThoseInside(t *testing.T) {
	m := newMemory(t, vhdx.CreateOptions{Size: 64 * mib, BlockSize: mib})
	m.fill(0, 1)
	m.must(m.Flush())
	at, pin, ok := m.Pin(true, 0, 4096)
	if !ok {
		t.Fatal("not pinned")
	}
	m.must(m.Discard(0, mib))
	place := func(block int64) int64 {
		t.Helper()
		m.fill(block, byte(block))
		at, pin, ok := m.Pin(false, block*mib, 1)
		if !ok {
			t.Fatal("not pinned")
		}
		m.Unpin(pin)
		return at
	}
	for block := int64(1); block < 4; block++ {
		if place(block) == at {
			t.Fatal("a block got the place of a discarded one before any flush")
		}
		if block > 1 {
			m.must(m.Flush())
		}
	}
	_, err := m.file.WriteAt([]byte("late"), at) // what the pin allows
	m.must(err)
	m.Unpin(pin)
	m.Idle()
	m.must(m.Flush())
	if place(4) != at {
		t.Error("the place is free and was not used")
	}
	p := make([]byte, mib)
	if _, err := m.ReadAt(p, 0); err != nil || !bytes.Equal(p, make([]byte, mib)) {
		t.Errorf("the discarded block holds %q: %v", p[:4], err)
	}
	m.closed()
}

// noZeroRange is a file that can punch holes but not zero a range, as on NFS.
type noZeroRange struct {
	vhdx.File
	vhdx.HolePuncher
}

// noHoles can do neither, as on NFSv3.
type noHoles struct{ vhdx.File }

func TestWriteZeroesWithoutWriting(t *testing.T) {
	for name, wrap := range map[string]func(*vhdxtest.File) vhdx.File{
		"zero range":    func(f *vhdxtest.File) vhdx.File { return f },
		"no zero range": func(f *vhdxtest.File) vhdx.File { return noZeroRange{f, f} },
		"no holes":      func(f *vhdxtest.File) vhdx.File { return noHoles{f} },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMemory(t, vhdx.CreateOptions{Size: 8*mib + 512, BlockSize: mib})
			m.must(m.Close())
			m.file.Reopen()
			m.open(wrap(m.file))
			for block := range int64(8) {
				m.fill(block, 7)
			}
			_, err := m.WriteAt(bytes.Repeat([]byte{7}, 512), 8*mib)
			m.must(err)
			m.must(m.Flush())
			written := 0
			m.file.OnStep(func(s *vhdxtest.Snapshot) {
				if s.WritesAbove(4 * mib) {
					written++
				}
			})
			m.must(m.WriteZeroes(mib, 3*mib))
			m.must(m.WriteZeroes(8*mib, 512)) // to the disk's end: all there is of the block
			if written > 0 {
				t.Errorf("%d writes for whole blocks", written)
			}
			m.must(m.WriteZeroes(5*mib+4096, 4096))
			m.file.OnStep(nil)
			want := bytes.Repeat([]byte{7}, int(8*mib+512))
			clear(want[mib : 4*mib])
			clear(want[5*mib+4096 : 5*mib+8192])
			clear(want[8*mib:])
			verify(t, m.Image, want)
			m.flush()
			for block := int64(1); block < 4; block++ {
				m.fill(block, 9) // into what has been freed
			}
			copy(want[mib:], bytes.Repeat([]byte{9}, int(3*mib)))
			m.must(m.Grow(9 * mib))
			want = append(want, make([]byte, mib-512)...)
			verify(t, m.Image, want)
			m.must(m.Close())
			m.file.Reopen()
			m.open(wrap(m.file))
			verify(t, m.Image, want)
			m.must(m.Close())
		})
	}
}

// A fixed image keeps the space of what is discarded.
func TestDiscardInFixedImage(t *testing.T) {
	m := newMemory(t, vhdx.CreateOptions{Size: 4 * mib, BlockSize: mib, Fixed: true})
	before := m.size()
	m.fill(1, 1)
	m.must(m.Discard(0, 4*mib))
	verify(t, m.Image, make([]byte, 4*mib))
	if l := m.closed(); len(l.Blocks) != 4 || m.size() != before {
		t.Errorf("%d of 4 blocks have space, the file %#x bytes instead of %#x", len(l.Blocks), m.size(), before)
	}
}

// What Windows leaves UNMAPPED keeps its former content there. Zeroed, it is
// not to come back in any program.
func TestAnchoredBlocks(t *testing.T) {
	for name, do := range map[string]func(*vhdx.Image) error{
		"write zeroes": func(im *vhdx.Image) error { return im.WriteZeroes(4096, 4096) },
		"write":        func(im *vhdx.Image) error { _, err := im.WriteAt(make([]byte, 512), 0); return err },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSpoil(t, 2)
			s.entry(0, ondisk.MakeBATEntry(ondisk.BlockUnmapped, s.entryAt(0).Offset()))
			im := s.open(vhdx.OpenOptions{GrowthStep: mib})
			if err := do(im); err != nil {
				t.Fatal(err)
			}
			closeImage(t, im)
			l, err := vhdxtest.ReadLayout(s.File.Clone())
			if err != nil {
				t.Fatal(err) // it takes no entry that reads zero and has an offset
			}
			if l.End() != l.FileSize {
				t.Errorf("the file ends at %#x and is used up to %#x", l.FileSize, l.End())
			}
		})
	}
}
