package fuseloop

import (
	"sync"
	"sync/atomic"

	w "github.com/csi-vhdx/csi-driver-vhdx/internal/fusewire"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/uring"
)

// How many goroutines serve requests that the ring cannot: writes that wait
// for space must hold up neither a flush, of which loop sends one at a time,
// nor a read.
const (
	slowReaders  = 4
	pollReaders  = 8 // without a ring
	slowChangers = 8
	slowFlushers = 2
)

// slowPool carries requests out through the image's methods. A request in it
// belongs to it (I-FL-1), until take.
type slowPool struct {
	reads, changes, flushes chan int32

	wg    sync.WaitGroup
	waker *uring.Waker
	count atomic.Int32 // len(done), to be read without mu
	mu    sync.Mutex   // guards done
	done  []int32
	spare []int32 // what take gave last; only take touches it
}

func newSlowPool(s *session, reqs []request, waker *uring.Waker, noRing bool) *slowPool {
	p := &slowPool{
		// Room for every request there is: submit never blocks.
		reads:   make(chan int32, len(reqs)),
		changes: make(chan int32, len(reqs)),
		flushes: make(chan int32, len(reqs)),
		waker:   waker,
		done:    make([]int32, 0, len(reqs)),
		spare:   make([]int32, 0, len(reqs)),
	}
	serve := func(queue <-chan int32, n int) {
		for range n {
			p.wg.Go(func() {
				s.crashes(func() {
					for i := range queue {
						s.execute(&reqs[i])
						p.finish(i)
					}
				})
			})
		}
	}
	readers := slowReaders
	if noRing {
		readers = pollReaders
	}
	serve(p.reads, readers)
	serve(p.changes, slowChangers)
	serve(p.flushes, slowFlushers)
	return p
}

func (p *slowPool) submit(i int32, op w.Opcode) {
	switch op {
	case w.OpRead:
		p.reads <- i
	case w.OpFsync:
		p.flushes <- i
	default:
		p.changes <- i
	}
}

func (p *slowPool) finish(i int32) {
	p.mu.Lock()
	p.done = append(p.done, i)
	p.count.Store(int32(len(p.done)))
	p.mu.Unlock()
	p.waker.Wake()
}

// ready reports whether take would give anything.
func (p *slowPool) ready() bool { return p.count.Load() > 0 }

// take gives the requests that are done, until the next take.
func (p *slowPool) take() []int32 {
	if !p.ready() {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done, p.spare = p.spare[:0], p.done
	p.count.Store(0)
	return p.spare
}

// close ends the goroutines; no request may be in the pool.
func (p *slowPool) close() {
	close(p.reads)
	close(p.changes)
	close(p.flushes)
	p.wg.Wait()
}
