package vhdx

import (
	"sync"
	"sync/atomic"
	"time"
)

// pins counts requests that rely on mappings staying what they are. Entering
// and leaving take no lock. wait returns once every request that was inside
// when it was called has left; requests that enter meanwhile see what was
// stored before the call. (Sleepable read-copy-update: two counters, flipped
// twice, because a request may read the epoch just before a flip and count
// itself just after.)
type pins struct {
	epoch  atomic.Uint32
	inside [2]paddedCounter
	flip   sync.Mutex // one wait at a time
}

type paddedCounter struct {
	atomic.Int64
	_ [56]byte
}

func (p *pins) enter() uint32 {
	i := p.epoch.Load() & 1
	p.inside[i].Add(1)
	return i
}

func (p *pins) leave(pin uint32) { p.inside[pin&1].Add(-1) }

func (p *pins) wait() {
	p.flip.Lock()
	defer p.flip.Unlock()
	for range 2 {
		old := p.epoch.Load() & 1
		p.epoch.Store(old ^ 1)
		for pause := 10 * time.Microsecond; p.inside[old].Load() != 0; pause = min(2*pause, time.Millisecond) {
			time.Sleep(pause)
		}
	}
}
