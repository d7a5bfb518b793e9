package disk

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"
)

// CompareOptions of [Compare].
type CompareOptions struct {
	// Workers at once, each with 2 MiB of memory; 0: 4, at most 64.
	Workers int
	// Progress, if set, is told now and then how far it is. Its error ends the
	// comparison.
	Progress func(done, total int64) error
}

// Compare returns the offset of the first byte in which two disks differ, -1
// if there is none. Where one is longer, the other counts as zero.
func Compare(ctx context.Context, a, b Source, o CompareOptions) (int64, error) {
	n := workers(o.Workers)
	c := &comparer{o: o, sides: [2]side{{Source: a, size: a.Size()}, {Source: b, size: b.Size()}}}
	c.size = max(a.Size(), b.Size())
	c.first.Store(idle)
	if err := crew(ctx, n, c.work); err != nil {
		return 0, err
	}
	if first := c.first.Load(); first != idle {
		return first, nil
	}
	return -1, nil
}

// comparer is a Compare under way.
type comparer struct {
	o     CompareOptions
	size  int64
	first atomic.Int64 // offset of the first difference found, or idle

	mu    sync.Mutex
	at    int64   // guarded by mu; everything before has been handed out
	sides [2]side // what is known of their data is guarded by mu
}

// side is one of the two disks, and where its next data lies.
type side struct {
	Source
	size             int64
	dataNext, dataOf int64 // data in [dataNext, dataOf)
}

// look makes dataNext and dataOf those of the data at or after off.
func (s *side) look(off int64) error {
	if off < s.dataOf {
		return nil
	}
	if off >= s.size {
		s.dataNext, s.dataOf = idle, idle
		return nil
	}
	var err error
	s.dataNext, s.dataOf, err = s.NextData(off)
	if s.dataNext >= s.size {
		s.dataNext, s.dataOf = idle, idle
	}
	s.dataOf = min(s.dataOf, max(s.size, s.dataNext))
	return err
}

// compared is a part of the disks for one worker.
type compared struct {
	off, length int64
	data        [2]bool // whether a side may hold anything but zeros there
}

func (c *comparer) next() (p compared, ok bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, b := &c.sides[0], &c.sides[1]
	for c.at < min(c.size, c.first.Load()) {
		for i := range c.sides {
			if err := c.sides[i].look(c.at); err != nil {
				return p, false, err
			}
		}
		if next := min(a.dataNext, b.dataNext, c.size); next > c.at {
			c.at = next // zero on both sides
			continue
		}
		end := min(c.at-c.at%halfPiece+halfPiece, c.size)
		for i, s := range c.sides {
			if p.data[i] = s.dataNext <= c.at; p.data[i] {
				end = min(end, s.dataOf)
			} else {
				end = min(end, s.dataNext)
			}
		}
		p.off, p.length = c.at, end-c.at
		c.at = end
		return p, true, nil
	}
	return p, false, nil
}

const halfPiece = pieceSize / 2

func (c *comparer) work(ctx context.Context, worker int, buf []byte) error {
	for {
		p, ok, err := c.next()
		if err != nil || !ok {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := c.compare(p, buf); err != nil {
			return err
		}
		if worker == 0 && c.o.Progress != nil {
			if err := c.o.Progress(p.off+p.length, c.size); err != nil {
				return err
			}
		}
	}
}

func (c *comparer) compare(p compared, buf []byte) error {
	var parts [2][]byte
	for i := range parts {
		if !p.data[i] {
			continue
		}
		parts[i] = buf[i*halfPiece:][:p.length]
		if err := readFull(c.sides[i].Source, parts[i], p.off); err != nil {
			return err
		}
	}
	var at int
	switch {
	case p.data[0] && p.data[1]:
		at = difference(parts[0], parts[1])
	case p.data[0]:
		at = firstNonzero(parts[0])
	default:
		at = firstNonzero(parts[1])
	}
	if at < 0 {
		return nil
	}
	for off := p.off + int64(at); ; {
		old := c.first.Load()
		if off >= old || c.first.CompareAndSwap(old, off) {
			return nil
		}
	}
}

// difference returns where two slices of one length differ first, -1: nowhere.
func difference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	const step = 4096
	at := 0
	for len(a)-at > step && bytes.Equal(a[at:at+step], b[at:at+step]) {
		at += step
	}
	for a[at] == b[at] {
		at++
	}
	return at
}

func firstNonzero(p []byte) int {
	if isZero(p) {
		return -1
	}
	at := 0
	for p[at] == 0 {
		at++
	}
	return at
}
