package disk

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"

	"golang.org/x/sys/unix"
)

// Source is a disk to read. Methods may be called from several goroutines at once.
// [*vhdx.Image] is one, live or not.
type Source interface {
	io.ReaderAt
	// Size in bytes.
	Size() int64
	// NextData returns the first range at or after off that may hold anything
	// but zeros; start is Size if there is none.
	NextData(off int64) (start, end int64, err error)
}

// Target is a disk to write. Methods may be called from several goroutines at once.
type Target interface {
	io.WriterAt
	Size() int64
	// WriteZeroes makes a range read zero, without writing where it can.
	WriteZeroes(off, n int64) error
	// Flush makes every write that has returned survive a power cut.
	Flush() error
}

const (
	defaultWorkers = 4
	maxWorkers     = 64
	// pieceSize is what one worker reads at once.
	pieceSize = 1 << 21
	// defaultUnit is how much must be zero to be left out: less would cut
	// writes into pieces that cost more than they save.
	defaultUnit = 64 << 10
)

func workers(n int) int {
	if n <= 0 {
		n = defaultWorkers
	}
	return min(n, maxWorkers)
}

// crew runs n workers, each with a buffer of pieceSize bytes, until all have
// returned; the first error stops the others, through ctx.
func crew(ctx context.Context, n int, work func(ctx context.Context, worker int, buf []byte) error) error {
	// Page-aligned, for direct I/O.
	mem, err := unix.Mmap(-1, 0, n*pieceSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	defer unix.Munmap(mem) //nolint:errcheck // of our own mapping
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var wg sync.WaitGroup
	for i := range n {
		buf := mem[i*pieceSize : (i+1)*pieceSize : (i+1)*pieceSize]
		wg.Go(func() {
			if err := work(ctx, i, buf); err != nil {
				stop(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// readFull reads all of p; a source that ends before its own size is an error.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil, errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return err
}

var zeros [defaultUnit]byte

// isZero reports whether p is all zero. Data shows it in its first bytes
// almost always.
func isZero(p []byte) bool {
	for len(p) > len(zeros) {
		if !bytes.Equal(p[:len(zeros)], zeros[:]) {
			return false
		}
		p = p[len(zeros):]
	}
	return bytes.Equal(p, zeros[:len(p)])
}

// span is a part of a buffer.
type span struct{ start, end int }

// nonzero returns the runs of units of p none of which is all zero.
func nonzero(p []byte, unit int) (found []span) {
	for start := 0; start < len(p); {
		end := min(start+unit, len(p))
		if isZero(p[start:end]) {
			start = end
			continue
		}
		for end < len(p) && !isZero(p[end:min(end+unit, len(p))]) {
			end = min(end+unit, len(p))
		}
		found = append(found, span{start, end})
		start = end
	}
	return found
}
