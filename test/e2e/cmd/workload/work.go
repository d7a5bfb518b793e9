package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"syscall"
	"time"
	"unsafe"
)

const (
	blockSize = 64 << 10
	// verifyEvery is how many writes there are to one read.
	verifyEvery = 4
	align       = 4096 // of memory, for reads past the page cache
)

type worker struct {
	reporter
	path   string
	blocks int64
	seed   uint64
}

// pattern is the content of a block in its n-th generation; 0 is zeros.
func (w *worker) pattern(b []byte, block int64, generation uint64) {
	if generation == 0 {
		clear(b)
		return
	}
	r := rand.NewPCG(w.seed^uint64(block), generation) //nolint:gosec // content that can be made again is the point
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
}

// open gives the file twice: for writes through the page cache, and for reads past it.
func (w *worker) open(create int) (cached, direct *os.File, err error) {
	if cached, err = os.OpenFile(w.path, os.O_RDWR|create, 0o600); err != nil {
		return nil, nil, err
	}
	direct, err = os.OpenFile(w.path, os.O_RDONLY|syscall.O_DIRECT, 0)
	return cached, direct, err
}

func (w *worker) fill() error {
	f, _, err := w.open(os.O_CREATE)
	if err != nil {
		return err
	}
	sum, b := sha256.New(), make([]byte, blockSize)
	for block := range w.blocks {
		w.pattern(b, block, 1)
		_, _ = sum.Write(b)
		if _, err := f.WriteAt(b, block*blockSize); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	w.done(sum.Sum(nil))
	return nil
}

func (w *worker) check() error {
	f, err := os.OpenFile(w.path, os.O_RDONLY|syscall.O_DIRECT, 0)
	if err != nil {
		return err
	}
	sum, got, want := sha256.New(), aligned(), make([]byte, blockSize)
	for block := range w.blocks {
		if _, err := f.ReadAt(got, block*blockSize); err != nil {
			return err
		}
		w.pattern(want, block, 1)
		if err := same(got, want, block); err != nil {
			return err
		}
		_, _ = sum.Write(got)
	}
	w.done(sum.Sum(nil))
	return nil
}

func (w *worker) done(sum []byte) {
	w.update(func(s *Status) { s.Sum, s.Ready = hex.EncodeToString(sum), true })
}

// hold leaves the volume as it is.
func (w *worker) hold() error {
	w.done(nil)
	return nil
}

// put writes at one place, which is told in decimal.
func (w *worker) put(at, size, generation string) error {
	off, err1 := strconv.ParseInt(at, 10, 64)
	n, err2 := strconv.ParseInt(size, 10, 32)
	g, err3 := strconv.ParseUint(generation, 10, 64)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	f, err := os.OpenFile(w.path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	b := make([]byte, n)
	w.pattern(b, off, g)
	_, err = f.WriteAt(b, off)
	return errors.Join(err, f.Sync(), f.Close())
}

// churn goes on until the pod ends. What it wrote is known to this process
// alone, so that a pause must not lose it.
func (w *worker) churn() error {
	cached, direct, err := w.open(os.O_CREATE)
	if err != nil {
		return err
	}
	if info, err := cached.Stat(); err != nil || info.Mode().IsRegular() && cached.Truncate(w.blocks*blockSize) != nil {
		return fmt.Errorf("make %s: %w", w.path, errors.Join(err, syscall.ENOSPC))
	}
	generations := make([]uint64, w.blocks)
	random := rand.New(rand.NewPCG(w.seed, uint64(time.Now().UnixNano()))) //nolint:gosec // as above
	got, want := aligned(), make([]byte, blockSize)
	for n := int64(1); ; n++ {
		block := random.Int64N(w.blocks)
		generations[block]++
		w.pattern(want, block, generations[block])
		if err := w.timed(func() error { _, err := cached.WriteAt(want, block*blockSize); return err }); err != nil {
			return err
		}
		if n%verifyEvery == 0 {
			if block = random.Int64N(w.blocks); generations[block] == 0 {
				continue
			}
			if err := w.timed(func() error {
				_, err := io.ReadFull(io.NewSectionReader(direct, block*blockSize, blockSize), got)
				return err
			}); err != nil {
				return err
			}
			w.pattern(want, block, generations[block])
			if err := same(got, want, block); err != nil {
				return err
			}
			w.update(func(s *Status) { s.Verified++ })
		}
		w.update(func(s *Status) { s.Writes, s.Ready = n, true })
	}
}

func same(got, want []byte, block int64) error {
	if bytes.Equal(got, want) {
		return nil
	}
	at := 0
	for got[at] == want[at] {
		at++
	}
	return fmt.Errorf("wrong byte at 0x%x: 0x%02x, want 0x%02x", block*blockSize+int64(at), got[at], want[at])
}

// aligned is a buffer that O_DIRECT takes.
func aligned() []byte {
	b := make([]byte, blockSize+align)
	skip := align - int(uintptr(unsafe.Pointer(&b[0]))%align) //nolint:gosec // only the address is looked at
	return b[skip : skip+blockSize : skip+blockSize]
}

// size is that of the device at path, or of the filesystem that the file is on.
func size(path string) int64 {
	var fs syscall.Statfs_t
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		f, err := os.Open(path)
		if err != nil {
			return 0
		}
		defer func() { _ = f.Close() }()
		end, _ := f.Seek(0, io.SeekEnd)
		return end
	}
	if err := syscall.Statfs(path, &fs); err != nil {
		return 0
	}
	return int64(fs.Blocks) * fs.Bsize //nolint:gosec // no filesystem has 2^63 bytes
}
