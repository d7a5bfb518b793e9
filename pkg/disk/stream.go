package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Resizer is a target that can become larger and smaller.
type Resizer interface{ Resize(size int64) error }

// CopyStream makes target hold what r delivers, which may be of any length: a
// target that is a [Resizer] grows with it, and at the end has its size,
// rounded up to whole sectors. One that is not must be large enough.
//
// If ctx ends, CopyStream returns when r.Read does.
func CopyStream(ctx context.Context, target Target, r io.Reader, sector int64, o Options) (Stats, error) {
	if o.Unit <= 0 || o.Unit > pieceSize {
		o.Unit = defaultUnit
	}
	s := &streamer{o: o, target: target, r: r}
	if err := crew(ctx, workers(o.Workers), s.work); err != nil {
		return s.stats, err
	}
	s.stats.Size = (s.stats.Size + sector - 1) / sector * sector
	if t, ok := target.(Resizer); ok && s.stats.Size != target.Size() {
		if err := t.Resize(s.stats.Size); err != nil {
			return s.stats, err
		}
	}
	return s.stats, target.Flush()
}

// streamer is a CopyStream under way.
type streamer struct {
	o      Options
	target Target

	mu    sync.Mutex
	r     io.Reader // guarded by mu: the pieces are read one after the other
	ended bool      // guarded by mu
	stats Stats     // guarded by mu
}

func (s *streamer) work(ctx context.Context, _ int, buf []byte) error {
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, off, err := s.read(buf)
		if n == 0 || err != nil {
			return err
		}
		written, err := writeRanges(s.target, off, buf[:n], nonzero(buf[:n], s.o.Unit), s.o.Blank)
		s.mu.Lock()
		s.stats.Written += written
		s.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// read fills buf with the next of the stream, for which target has room then.
func (s *streamer) read(buf []byte) (n int, off int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return 0, 0, nil
	}
	n, err = io.ReadFull(s.r, buf)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		s.ended, err = true, nil
	}
	if err != nil {
		return 0, 0, fmt.Errorf("read the input at %#x: %w", s.stats.Size, err)
	}
	off = s.stats.Size
	s.stats.Size += int64(n)
	s.stats.Read += int64(n)
	if err := s.makeRoom(s.stats.Size); err != nil {
		return 0, 0, err
	}
	if s.o.Progress != nil {
		err = s.o.Progress(s.stats.Size, -1)
	}
	return n, off, err
}

// makeRoom grows the target to at least size: to twice what it has, since a
// growth costs syncs.
func (s *streamer) makeRoom(size int64) error {
	has := s.target.Size()
	if size <= has {
		return nil
	}
	t, ok := s.target.(Resizer)
	if !ok {
		return fmt.Errorf("the input is longer than the %d bytes of the target", has)
	}
	return t.Resize(max(2*has, (size+pieceSize-1)/pieceSize*pieceSize))
}

// Stream is a target that takes bytes in order alone, such as a pipe: for a
// copy with Options.Whole.
type Stream struct {
	w    io.Writer
	size int64

	mu   sync.Mutex
	turn *sync.Cond
	at   int64 // guarded by mu; what has been written
	err  error // guarded by mu
}

// NewStream makes a target of size bytes of w.
func NewStream(w io.Writer, size int64) *Stream {
	s := &Stream{w: w, size: size}
	s.turn = sync.NewCond(&s.mu)
	return s
}

// Size implements [Target].
func (s *Stream) Size() int64 { return s.size }

// WriteAt waits until all before off has been written.
func (s *Stream) WriteAt(p []byte, off int64) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.err == nil && s.at < off {
		s.turn.Wait()
	}
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.w.Write(p)
	s.at += int64(n)
	s.err = err
	s.turn.Broadcast()
	return n, err
}

// Stop ends the waiting of every WriteAt: the piece before will never come.
func (s *Stream) Stop(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = cause
	}
	s.turn.Broadcast()
}

// WriteZeroes implements [Target].
func (s *Stream) WriteZeroes(off, n int64) error { return writeZeros(s, off, n) }

// Flush implements [Target]: a pipe keeps nothing.
func (s *Stream) Flush() error { return nil }
