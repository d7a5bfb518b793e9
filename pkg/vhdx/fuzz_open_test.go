package vhdx_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

// FuzzOpen opens hostile images, reads and writes them. The input is a list of
// patches to a valid image (or, for the last base, the image itself):
//
//	0  which base   1  what is made right again (mend...)   2  new size in MiB, 0: as it is
//	then each patch: anchor, offset from it (2), length, bytes
//
// Nothing may panic or hang, or allocate without bound; a read-only and a
// writable open of the same bytes that both succeed show the same; and what
// was closed without an error opens again.
func FuzzOpen(f *testing.F) {
	seedImages(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		file := fuzzImage(in)
		if file == nil {
			return
		}
		size, err := file.Size()
		if err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if err := useHostile(file); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		if used := after.TotalAlloc - before.TotalAlloc; used > 256*uint64(mib)+64*uint64(size) {
			t.Fatalf("%d bytes allocated for a file of %d", used, size)
		}
	})
}

// What is made right after the patches, so that they get past the checksums.
const (
	mendHeaders = 1 << iota
	mendRegions
	mendLog
	mendAll = mendHeaders | mendRegions | mendLog
)

// fuzzAnchors are the places that patches count from.
var fuzzAnchors = []int64{
	0, 0x10000, 0x20000, 0x30000, 0x40000, // identifier, headers, region tables
	0x100000, 0x101000, 0x103000, // log
	0x200000, 0x210000, // metadata table and items
	0x300000, 0x400000, // BAT, payload
}

// fuzzBases are small valid images: clean, dirty, fixed, with 4 KiB sectors,
// with a BAT that has moved.
var fuzzBases = sync.OnceValue(func() []*vhdxtest.File {
	var all []*vhdxtest.File
	for i, o := range []vhdx.CreateOptions{
		{Size: 5*mib + 512, BlockSize: mib},
		{Size: 2 * mib, BlockSize: mib, Fixed: true},
		{Size: 3*mib + 4096, BlockSize: 2 * mib, LogicalSectorSize: 4096},
		{Size: 127 * gib, BlockSize: mib},
	} {
		file := vhdxtest.NewFile(fmt.Sprintf("base-%d.vhdx", i))
		var dirty []*vhdxtest.File
		must := func(err error) {
			if err != nil {
				panic(err)
			}
		}
		_, err := vhdx.CreateOn(file, o)
		must(err)
		im, err := vhdx.Open(file, vhdx.OpenOptions{GrowthStep: mib})
		must(err)
		for n := range int64(3) {
			_, err := im.WriteAt(bytes.Repeat([]byte{byte(n + 1)}, 8192), n*900*1024/4096*4096)
			must(err)
			must(im.Flush())
			dirty = append(dirty, file.Clone())
			must(im.Grow(im.Size() + o.Size/100/4096*4096))
			dirty = append(dirty, file.Clone())
		}
		must(im.Close())
		all = append(all, file.Clone())
		all = append(all, dirty...)
	}
	child, base, err := fuzzFamily()
	if err != nil {
		panic(err)
	}
	fuzzParent.Store(base)
	return append(all, child.Clone())
})

// fuzzParent is the parent of the last of the bases.
var fuzzParent atomic.Pointer[vhdxtest.File]

// hostileOptions opens a hostile image, on that parent if it wants one.
func hostileOptions() vhdx.OpenOptions {
	fuzzBases()
	return vhdx.OpenOptions{GrowthStep: mib, Parents: oneParent{fuzzParent.Load()}}
}

// fuzzImage makes the file that an input describes.
func fuzzImage(in []byte) *vhdxtest.File {
	if len(in) < 3 || int64(len(in)) > 64*kib {
		return nil
	}
	bases := fuzzBases()
	base, mend, size, in := int(in[0]), in[1], in[2], in[3:]
	if base >= len(bases) {
		file := vhdxtest.NewFile("raw.vhdx")
		file.WriteAt(in, 0)
		return file
	}
	file := bases[base].Clone()
	if size > 0 {
		file.Truncate(int64(size) * mib)
	}
	for len(in) >= 4 {
		at := fuzzAnchors[int(in[0])%len(fuzzAnchors)] + int64(binary.LittleEndian.Uint16(in[1:]))
		n := min(int(in[3]), len(in)-4)
		file.WriteAt(in[4:4+n], at)
		in = in[4+n:]
	}
	mendFile(file, mend)
	file.Sync()
	return file
}

// mendFile makes checksums right.
func mendFile(file *vhdxtest.File, what byte) {
	if what&mendHeaders != 0 {
		mendSum(file, 0x10000, 4096)
		mendSum(file, 0x20000, 4096)
	}
	if what&mendRegions != 0 {
		mendSum(file, 0x30000, 0x10000)
		mendSum(file, 0x40000, 0x10000)
	}
	if what&mendLog == 0 {
		return
	}
	var head [64]byte
	for at := int64(mib); at < 2*mib; at += 4096 {
		if n, _ := file.ReadAt(head[:], at); n < len(head) || string(head[:4]) != "loge" {
			continue
		}
		mendSum(file, at, int64(binary.LittleEndian.Uint32(head[8:])))
	}
}

// mendSum writes the CRC-32C of a structure that carries it at byte 4.
func mendSum(file *vhdxtest.File, at, n int64) {
	if n < 8 || n > mib {
		return
	}
	b := make([]byte, n)
	if got, _ := file.ReadAt(b, at); int64(got) < n {
		return
	}
	clear(b[4:8])
	binary.LittleEndian.PutUint32(b[4:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	file.WriteAt(b[4:8], at+4)
}

// useHostile opens, reads, writes and closes an image, and judges not whether
// that succeeds but whether it is consistent.
func useHostile(file *vhdxtest.File) error {
	before := file.Hash()
	o, ro := hostileOptions(), hostileOptions()
	ro.ReadOnly = true
	readOnly := file.Clone()
	shown, roErr := showHostile(readOnly, ro)
	if readOnly.Hash() != before {
		return errors.New("a read-only open changed the file")
	}
	writable := file.Clone()
	replayed, rwErr := showHostile(writable, o)
	if roErr == nil && rwErr == nil && !bytes.Equal(shown, replayed) {
		return errors.New("a writable open shows something else than a read-only one")
	}
	if rwErr != nil {
		return nil
	}
	writable.Reopen()
	im, err := vhdx.Open(writable, o)
	if err != nil {
		return fmt.Errorf("opened and closed, it does not open again: %w", err)
	}
	done, err := writeHostile(im)
	if err != nil || !done {
		_ = im.Close() // it may be closed already, or poisoned
		return err
	}
	ro.RefuseDirty = true
	if _, err := showHostile(writable.Clone(), ro); err != nil {
		return fmt.Errorf("written and closed, it does not open again: %w", err)
	}
	return nil
}

// showHostile returns some of what an image shows.
func showHostile(file *vhdxtest.File, o vhdx.OpenOptions) ([]byte, error) {
	im, err := vhdx.Open(file, o)
	if err != nil {
		return nil, err
	}
	_ = im.Info()
	shown := binary.LittleEndian.AppendUint64(nil, uint64(im.Size()))
	buf := make([]byte, 64*kib)
	for _, off := range []int64{0, 900 * kib, 2*mib - 32*kib, im.Size() / 2, max(0, im.Size()-512)} {
		clear(buf)
		n, err := im.ReadAt(buf, off)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, vhdx.ErrOutOfRange) {
			n = 0
		}
		shown = append(shown, buf[:n]...)
	}
	return shown, im.Close()
}

// writeHostile writes here and there and closes the image; done is false where
// something of that was refused, which is all right.
func writeHostile(im *vhdx.Image) (done bool, err error) {
	size := im.Size()
	sector := int64(im.LogicalSectorSize())
	data := bytes.Repeat([]byte("hostile!"), int(sector/8))
	got := make([]byte, sector)
	for _, off := range []int64{0, size - sector} {
		if _, err := im.WriteAt(data, off); err != nil {
			return false, nil
		}
		if _, err := im.ReadAt(got, off); err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(got, data) {
			return false, fmt.Errorf("what was written at %#x does not read back (%w)", off, err)
		}
	}
	compact := func() error {
		_, err := im.Compact(context.Background(), vhdx.CompactOptions{})
		if errors.Is(err, vhdx.ErrInvalid) {
			return nil // a fixed image
		}
		return err
	}
	shows := false // something, where the disk has grown
	block := im.Info().BlockSize
	for _, change := range []func() error{
		im.Flush,
		func() error { return im.Discard(0, sector) },
		func() error { return im.Discard(0, min(block, size)) },
		im.Flush,
		compact,
		func() error { return im.Grow(size + sector) },
		func() error {
			if _, err := im.ReadAt(got, size); err == nil || errors.Is(err, io.EOF) {
				shows = !allZero(got)
			}
			return nil
		},
		func() error {
			return im.Resize(max(sector, size/2/sector*sector), vhdx.ResizeOptions{CutData: true})
		},
		compact,
		im.Close,
	} {
		if err := change(); err != nil {
			return false, nil
		}
		if shows {
			return false, errors.New("what the disk gained in size does not read zero")
		}
	}
	return true, nil
}
