package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/disk"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

const mib = 1 << 20

// makeRaw writes a sparse file of size bytes, full of them data, in runs of 1
// to 64 MiB evenly spread.
func makeRaw(path string, size, full int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(1, 2))
	buf := make([]byte, mib)
	for i := range buf {
		buf[i] = byte(r.Uint32())
	}
	err = f.Truncate(size)
	spread := size / full
	for off := int64(0); err == nil && off < size; {
		run := 1 + r.Int64N(64)
		for i := int64(0); err == nil && i < run && off+(i+1)*mib <= size && full > 0; i++ {
			binary.LittleEndian.PutUint64(buf, uint64(off+i*mib)+1)
			_, err = f.WriteAt(buf, off+i*mib)
			full -= mib
		}
		off += run * spread * mib
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// makeFull makes an image every block of which has a place in the file, and
// none any space: its block table is written by hand.
func makeFull(path string, size int64) error {
	const block = 32 * mib
	if _, err := vhdx.Create(path, vhdx.CreateOptions{Size: size, BlockSize: block}); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	// Header section, log and metadata have 1 MiB each, the table the rest.
	const table = 3 * mib
	payload, err := f.Seek(0, 2)
	blocks := size / block
	const ratio = 512 << 23 / block // payload entries between two of bitmaps
	entries := make([]byte, 8*(blocks+(blocks-1)/ratio))
	for n := range blocks {
		binary.LittleEndian.PutUint64(entries[8*(n+n/ratio):], uint64(payload+n*block)|6)
	}
	if err == nil {
		_, err = f.WriteAt(entries, table)
	}
	if err == nil {
		err = f.Truncate(payload + blocks*block)
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// makeDirty leaves an image as a power cut would, with a log of so many pages.
func makeDirty(path string, logSize int64, pages int) error {
	live := path + "-live"
	const perPage = 512 // blocks of 1 MiB whose entries share a page
	if _, err := vhdx.Create(live, vhdx.CreateOptions{Size: int64(pages+2) * perPage * mib, BlockSize: mib, LogSize: logSize}); err != nil {
		return err
	}
	im, err := vhdx.OpenPath(live, vhdx.OpenOptions{GrowthStep: 1 << 30})
	if err != nil {
		return err
	}
	data := make([]byte, 4096)
	data[0] = 1
	for n := 0; n < pages && err == nil; n++ {
		_, err = im.WriteAt(data, int64(n)*perPage*mib)
	}
	if err == nil {
		err = im.Flush()
	}
	if err == nil {
		err = copySparse(context.Background(), live, path)
	}
	if err = errors.Join(err, im.Close(), os.Remove(live)); err != nil {
		return err
	}
	return checkDirty(path, pages)
}

// checkDirty makes sure that a log is what the line says.
func checkDirty(path string, pages int) error {
	im, err := vhdx.OpenPath(path, vhdx.OpenOptions{ReadOnly: true})
	if err != nil {
		return err
	}
	replay := im.Info().Replay
	if err := im.Close(); err != nil {
		return err
	}
	if replay.Pages < pages {
		return fmt.Errorf("%s: %d pages to replay, want %d", path, replay.Pages, pages)
	}
	return nil
}

// copySparse copies a file that somebody may have open.
func copySparse(ctx context.Context, from, to string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	of, err := vhdx.NewOSFile(f, vhdx.FileOptions{ReadOnly: true, Buffered: true, NoLock: true})
	if err != nil {
		return errors.Join(err, f.Close())
	}
	size, err := of.Size()
	if err != nil {
		return errors.Join(err, of.Close())
	}
	t, err := disk.CreateFile(to, size)
	if err != nil {
		return errors.Join(err, of.Close())
	}
	if _, err := disk.Copy(ctx, t, sized{of, size}, disk.Options{Blank: true, Unit: 4096}); err != nil {
		return errors.Join(err, t.Abort(), of.Close())
	}
	return errors.Join(t.Publish(true), of.Close())
}

// sized is a file of a size.
type sized struct {
	*vhdx.OSFile
	size int64
}

func (s sized) Size() int64 { return s.size }

func (s sized) NextData(off int64) (start, end int64, err error) {
	if start, err = s.OSFile.NextData(off, s.size); err != nil || start >= s.size {
		return s.size, s.size, err
	}
	end, err = s.NextHole(start, s.size)
	return start, end, err
}
