package vhdx_test

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

func TestShrinkRefuses(t *testing.T) {
	m := newMemory(t, vhdx.CreateOptions{Size: 8*mib + 4096, BlockSize: mib, LogicalSectorSize: 4096})
	for size, want := range map[int64]error{
		0:            vhdx.ErrInvalid,
		-4096:        vhdx.ErrInvalid,
		4*mib + 512:  vhdx.ErrInvalid, // 4 KiB sectors
		1<<46 + 4096: vhdx.ErrInvalid,
	} {
		if err := m.Resize(size, vhdx.ResizeOptions{CutData: true}); !errors.Is(err, want) {
			t.Errorf("resize to %#x: %v", size, err)
		}
	}
	_, err := m.WriteAt([]byte{1}, 4*mib+8191)
	m.must(err)
	m.must(m.Flush())
	before := m.file.Hash()
	for _, size := range []int64{4096, 4 * mib, 4*mib + 4096} {
		if err := m.Resize(size, vhdx.ResizeOptions{}); !errors.Is(err, vhdx.ErrDataBeyondEnd) {
			t.Errorf("resize to %#x with a byte at %#x: %v", size, 4*mib+8191, err)
		}
	}
	if m.file.Hash() != before || m.Size() != 8*mib+4096 {
		t.Error("a resize that was refused changed something")
	}
	m.must(m.Resize(4*mib+8192, vhdx.ResizeOptions{}))
	m.must(m.WriteZeroes(4*mib+4096, 4096))
	m.must(m.Resize(4*mib+4096, vhdx.ResizeOptions{})) // space, but only zeros
	if l := m.closed(); l.VirtualSize != 4*mib+4096 {
		t.Errorf("the size is %#x", l.VirtualSize)
	}
}

// What was cut off does not come back when the disk grows again, and its space
// is free.
func TestShrinkThenGrow(t *testing.T) {
	for name, o := range map[string]vhdx.CreateOptions{
		"dynamic": {Size: 20 * mib, BlockSize: 2 * mib},
		"fixed":   {Size: 20 * mib, BlockSize: 2 * mib, Fixed: true},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMemory(t, o)
			want := bytes.Repeat([]byte{0xee}, int(20*mib))
			_, err := m.WriteAt(want, 0)
			m.must(err)
			const size = 7*mib + 512 // inside a block and a page
			m.must(m.Resize(size, vhdx.ResizeOptions{CutData: true}))
			if _, err := m.WriteAt(make([]byte, 512), size); !errors.Is(err, vhdx.ErrOutOfRange) {
				t.Errorf("write beyond the end: %v", err)
			}
			if _, _, ok := m.Pin(true, size, 512); ok {
				t.Error("pinned beyond the end")
			}
			verify(t, m.Image, want[:size])
			m.must(m.Close())
			if after := m.size(); after != 4*mib+4*2*mib {
				t.Errorf("4 blocks are left and the file has %#x bytes", after)
			}
			m.file.Reopen()
			m.open(m.file)
			m.must(m.Resize(20*mib, vhdx.ResizeOptions{}))
			clear(want[size:])
			verify(t, m.Image, want)
			if l := m.closed(); o.Fixed && len(l.Blocks) != 10 {
				t.Errorf("%d of 10 blocks of a fixed image have space", len(l.Blocks))
			}
		})
	}
}

// Shrinking under I/O: requests end inside or fail beyond, none is lost.
func TestShrinkUnderIO(t *testing.T) {
	path := create(t, vhdx.CreateOptions{Size: 64 * mib, BlockSize: mib})
	im := open(t, path, vhdx.OpenOptions{})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for writer := range int64(4) {
		wg.Go(func() {
			p := bytes.Repeat([]byte{byte(writer + 1)}, 4096)
			for i := int64(0); ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				off := (i*7%64)*mib + writer*4096
				if _, err := im.WriteAt(p, off); err != nil && !errors.Is(err, vhdx.ErrOutOfRange) {
					t.Errorf("write: %v", err)
				}
				if err := im.Discard(off, 4096*(i%3)); err != nil && !errors.Is(err, vhdx.ErrOutOfRange) {
					t.Errorf("discard: %v", err)
				}
				if i%16 == 0 {
					if err := im.Flush(); err != nil {
						t.Errorf("flush: %v", err)
					}
				}
			}
		})
	}
	for round := range int64(6) {
		if err := im.Resize((50-round)*mib+512, vhdx.ResizeOptions{CutData: true}); err != nil {
			t.Errorf("shrink: %v", err)
		}
		if err := im.Resize(64*mib, vhdx.ResizeOptions{}); err != nil {
			t.Errorf("grow: %v", err)
		}
	}
	close(stop)
	wg.Wait()
	closeImage(t, im)
	askCheck(t, path)
}

// A file whose blocks have gone becomes short while it is in use.
func TestTailIsCutOnline(t *testing.T) {
	m := newMemory(t, vhdx.CreateOptions{Size: 64 * mib, BlockSize: mib})
	for block := range int64(40) {
		m.fill(block, byte(block))
	}
	m.flush()
	m.must(m.Discard(2*mib, 62*mib))
	for range 3 { // freeing, hole, cut: each waits for the sync before it
		m.flush()
	}
	if size := m.size(); size > 12*mib {
		t.Errorf("2 blocks are left and the file has %#x bytes", size)
	}
	for block := int64(10); block < 30; block++ {
		m.fill(block, byte(block))
	}
	want := make([]byte, 64*mib)
	for _, block := range []int64{0, 1, 10, 29} {
		copy(want[block*mib:], bytes.Repeat([]byte{byte(block)}, int(mib)))
	}
	for block := int64(10); block < 30; block++ {
		copy(want[block*mib:], bytes.Repeat([]byte{byte(block)}, int(mib)))
	}
	verify(t, m.Image, want)
	dirty := m.file.Snapshot().Killed()
	im, err := vhdx.Open(dirty, vhdx.OpenOptions{})
	m.must(err)
	m.must(im.Close())
	m.closed()
}

func TestCompact(t *testing.T) {
	m := newMemory(t, vhdx.CreateOptions{Size: 64 * mib, BlockSize: mib})
	want := make([]byte, 64*mib)
	for block := range int64(64) {
		b := byte(block)
		if block%8 == 1 {
			b = 0 // space, and nothing in it
		}
		m.fill(block, b)
		copy(want[block*mib:], bytes.Repeat([]byte{b}, int(mib)))
	}
	m.must(m.Discard(10*mib, 40*mib))
	clear(want[10*mib : 50*mib])
	m.must(m.Close())
	before, err := vhdxtest.ReadLayout(m.file.Clone())
	m.must(err)

	m.file.Reopen()
	m.open(m.file)
	var last, total int64
	out, err := m.Compact(t.Context(), vhdx.CompactOptions{Progress: func(done, all int64) {
		if done < last || total != 0 && all != total {
			t.Errorf("progress: %d of %d after %d of %d", done, all, last, total)
		}
		last, total = done, all
	}})
	m.must(err)
	if last != total {
		t.Errorf("progress ended at %d of %d", last, total)
	}
	verify(t, m.Image, want)
	// Blocks 0 to 9 and 50 to 63 have space; 1, 9 and 57 hold zeros; block 0 holds zeros too.
	if diff := cmp.Diff(vhdx.Compacted{Zeroes: 4, Moved: 13, SizeBefore: out.SizeBefore, SizeAfter: 4*mib + 20*mib}, out); diff != "" {
		t.Errorf("compacted: %s", diff)
	}
	if size := m.size(); size != out.SizeAfter {
		t.Errorf("the file has %#x bytes, told: %#x", size, out.SizeAfter)
	}
	l := m.closed()
	if l.Header.DataWriteGUID != before.Header.DataWriteGUID {
		t.Error("DataWriteGuid has changed")
	}
	if l.FileSize != out.SizeAfter {
		t.Errorf("closed, the file has %#x bytes instead of %#x", l.FileSize, out.SizeAfter)
	}
}

// Data may be changed after a compaction, in the same session; DataWriteGuid
// then follows.
func TestWriteAfterCompact(t *testing.T) {
	m := newMemory(t, vhdx.CreateOptions{Size: 16 * mib, BlockSize: mib})
	guid := m.Info().DataWriteGUID
	_, err := m.Compact(t.Context(), vhdx.CompactOptions{})
	m.must(err)
	if m.Info().DataWriteGUID != guid {
		t.Error("the compaction changed DataWriteGuid")
	}
	m.fill(3, 3)
	if m.Info().DataWriteGUID == guid {
		t.Error("the write did not change DataWriteGuid")
	}
	m.closed()
}

func TestCompactKeepsWritersOut(t *testing.T) {
	m := newMemory(t, vhdx.CreateOptions{Size: 16 * mib, BlockSize: mib})
	for block := range int64(4) {
		m.fill(block, 1)
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err := m.Compact(ctx, vhdx.CompactOptions{Progress: func(int64, int64) {
		if _, err := m.WriteAt([]byte{1}, 0); !errors.Is(err, vhdx.ErrInUse) {
			t.Errorf("write to a block with space: %v", err)
		}
		if _, err := m.WriteAt([]byte{1}, 8*mib); !errors.Is(err, vhdx.ErrInUse) {
			t.Errorf("write to one without: %v", err)
		}
		if err := m.Discard(0, mib); !errors.Is(err, vhdx.ErrInUse) {
			t.Errorf("discard: %v", err)
		}
		if _, err := m.ReadAt(make([]byte, 512), 0); err != nil {
			t.Errorf("read: %v", err)
		}
		m.must(m.Flush())
		cancel()
	}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	m.fill(5, 5)
	m.closed()
	fixed := newMemory(t, vhdx.CreateOptions{Size: 4 * mib, BlockSize: mib, Fixed: true})
	if _, err := fixed.Compact(t.Context(), vhdx.CompactOptions{}); !errors.Is(err, vhdx.ErrInvalid) {
		t.Errorf("compact a fixed image: %v", err)
	}
	fixed.closed()
}

// On a filesystem, with holes inside blocks, and the oracles' opinion.
func TestOracleCompacted(t *testing.T) {
	dir := t.TempDir()
	path, raw := filepath.Join(dir, "disk.vhdx"), filepath.Join(dir, "raw")
	if _, err := vhdx.Create(path, vhdx.CreateOptions{Size: 48*mib + 512, BlockSize: 2 * mib, LogicalSectorSize: 512}); err != nil {
		t.Fatal(err)
	}
	w := openTwin(t, path, raw, vhdx.OpenOptions{GrowthStep: 4 * mib})
	for round := range 3 {
		for range 60 {
			w.step(t)
		}
		for block := int64(round); block < 22; block += 3 {
			w.zero(t, block*2*mib, 2*mib, w.im.Discard)
		}
		w.checkDirty(t)
		if _, err := w.im.Compact(t.Context(), vhdx.CompactOptions{}); err != nil {
			t.Fatal(err)
		}
		w.checkDirty(t)
		size := w.im.Size() - 3*mib
		if err := w.im.Resize(size, vhdx.ResizeOptions{CutData: true}); err != nil {
			t.Fatal(err)
		}
		if err := w.f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		w.checkDirty(t)
		w.grow(t, size+2*mib)
		w.checkDirty(t)
	}
	w.close(t)
	w.check(t, path)
}
