package deathpoint

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Page is the memory that the test shares with the workers. It stays mapped
// for the life of the process.
//
//	0    8  countdown<<8 | point; 0: nothing is armed
//	8    8  deaths
//	16   8  time of the last one, CLOCK_MONOTONIC ns
//	24   8  its point
//	32   8  what is armed next, by a death: like the first
//	40   8  the process that died
//	64   .. how often each point has been reached, 8 bytes each
type Page struct{ mem []byte }

const (
	offArmed  = 0
	offDeaths = 8
	offTime   = 16
	offPoint  = 24
	offThen   = 32
	offPID    = 40
	offHits   = 64
	pageSize  = 4096
)

// CreatePage makes a page in a new file.
func CreatePage(path string) (*Page, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(pageSize); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return mapPage(f)
}

// OpenPage maps the page that another process has made.
func OpenPage(path string) (*Page, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || st.Size() != pageSize {
		return nil, errors.Join(err, fmt.Errorf("%s is no page of death points", path), f.Close())
	}
	return mapPage(f)
}

func mapPage(f *os.File) (*Page, error) {
	mem, err := unix.Mmap(int(f.Fd()), 0, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("map %s: %w", f.Name(), err)
	}
	return &Page{mem}, nil
}

func (p *Page) word(off int) *atomic.Uint64 { return (*atomic.Uint64)(unsafe.Pointer(&p.mem[off])) }

// Arm has the next process die that reaches at, the n-th time, n at least 1.
func (p *Page) Arm(at Point, n uint32) { p.word(offArmed).Store(armed(at, n)) }

// ArmThen arms at as soon as what is armed now has been died of.
func (p *Page) ArmThen(at Point, n uint32) { p.word(offThen).Store(armed(at, n)) }

func armed(at Point, n uint32) uint64 { return uint64(n)<<8 | uint64(at) }

// Disarm takes all that back, and reports whether it was still to come.
func (p *Page) Disarm() bool {
	then := p.word(offThen).Swap(0)
	return p.word(offArmed).Swap(0)|then != 0
}

// Hits is how often a point has been reached.
func (p *Page) Hits(at Point) uint64 { return p.word(offHits + int(at)*8).Load() }

// Death is the last one that a point was.
type Death struct {
	Number uint64        // how many there have been
	When   time.Duration // CLOCK_MONOTONIC
	At     Point
	PID    int
}

// Last tells of the last death; Number 0: there was none.
func (p *Page) Last() Death {
	return Death{p.word(offDeaths).Load(), time.Duration(p.word(offTime).Load()), Point(p.word(offPoint).Load()), int(p.word(offPID).Load())}
}

// reach counts, and reports whether the process has to die.
func (p *Page) reach(at Point) bool {
	p.word(offHits + int(at)*8).Add(1)
	for armed := p.word(offArmed); ; {
		was := armed.Load()
		if Point(was) != at {
			return false
		}
		if left := was>>8 - 1; left > 0 {
			if armed.CompareAndSwap(was, left<<8|uint64(at)) {
				return false
			}
			continue
		}
		if !armed.CompareAndSwap(was, p.word(offThen).Swap(0)) {
			continue // disarmed, or somebody else dies here
		}
		p.word(offTime).Store(uint64(Now()))
		p.word(offPoint).Store(uint64(at))
		p.word(offPID).Store(uint64(os.Getpid()))
		p.word(offDeaths).Add(1)
		return true
	}
}

// Now is CLOCK_MONOTONIC, the same in every process of the machine.
func Now() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) // it has no way to fail
	return time.Duration(t.Nano())
}
