package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/deathpoint"
)

// probe asks one volume again and again for something small, through O_DIRECT,
// and so sees how long it stands still.
type probe struct {
	l         *load
	at        int64
	buf, want []byte

	mu    sync.Mutex // guards what follows
	done  *sync.Cond
	seen  []interval // since the last mark
	ended bool
}

// interval is when a request began and ended, CLOCK_MONOTONIC.
type interval struct{ begin, end time.Duration }

// probeEvery is the pause between two requests, and how exact a gap is.
const probeEvery = 2 * time.Millisecond

func newProbe(l *load, at int64) *probe {
	p := &probe{l: l, at: at, buf: aligned(pageSize), want: aligned(pageSize)}
	p.done = sync.NewCond(&p.mu)
	return p
}

// run probes until ctx ends or a request fails.
func (p *probe) run(ctx context.Context) {
	defer func() {
		p.mu.Lock()
		p.ended = true
		p.done.Broadcast()
		p.mu.Unlock()
	}()
	for n := uint64(1); ctx.Err() == nil; n++ {
		begin := deathpoint.Now()
		if err := p.once(n); err != nil {
			p.l.found.failed(p.l.name+", probe", err)
			return
		}
		p.mu.Lock()
		p.seen = append(p.seen, interval{begin, deathpoint.Now()})
		p.done.Broadcast()
		p.mu.Unlock()
		time.Sleep(probeEvery)
	}
}

// once writes a page and, every second time, reads back what the last ones wrote.
func (p *probe) once(n uint64) error {
	if n%2 == 0 {
		if _, err := p.l.direct.ReadAt(p.buf, p.at); err != nil {
			return err
		}
		if !bytes.Equal(p.buf, p.want) {
			p.l.found.wrong.Add(1)
			p.l.found.log("WRONG BYTES: %s, probe: % x, want % x", p.l.name, p.buf[:8], p.want[:8])
		}
		return nil
	}
	for i := 0; i < pageSize; i += 8 {
		binary.LittleEndian.PutUint64(p.want[i:], n)
	}
	_, err := p.l.direct.WriteAt(p.want, p.at)
	return err
}

// mark forgets what has been seen.
func (p *probe) mark() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = p.seen[:0]
}

// since waits until a request that began after served has ended, and returns
// the longest time that any took after death.
func (p *probe) since(ctx context.Context, death, served time.Duration) (time.Duration, error) {
	stop := context.AfterFunc(ctx, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.done.Broadcast()
	})
	defer stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		var gap time.Duration
		alive := false
		for _, i := range p.seen {
			gap = max(gap, i.end-max(i.begin, death))
			alive = alive || i.begin > served
		}
		switch {
		case alive:
			return gap, nil
		case p.ended:
			return 0, fmt.Errorf("%s: its I/O has failed", p.l.name)
		case ctx.Err() != nil:
			return 0, fmt.Errorf("%s: no request done: %w", p.l.name, context.Cause(ctx))
		}
		p.done.Wait()
	}
}
