package main

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"

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
