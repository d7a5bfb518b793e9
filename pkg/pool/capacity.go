package pool

import (
	"context"
	"errors"
	"math"
	"math/bits"
)

// Size of a volume when none is asked for.
const defaultSize = 1 << 30

const mib = 1 << 20

// footprint is what the image of a volume may take in the filesystem once all
// of its blocks are allocated: an upper bound, fixed when the volume is made
// and kept in its record.
func footprint(size int64, p Params) int64 {
	block := defaultBlock(size)
	if p.BlockSize > 0 {
		block = max(mib, int64(1)<<bits.Len64(uint64(p.BlockSize-1)))
	}
	const headers = 3 * mib // file identifier, headers, region tables; metadata; slack of the layout
	log := roundUp(max(p.LogSize, mib), mib)
	bat := roundUp(8*(size/mib+size/(4096*mib)+2), mib) // as if of 1 MiB blocks, with bitmap entries
	return headers + log + bat + roundUp(size, block)
}

// defaultBlock is an upper bound of the block size chosen for a size.
func defaultBlock(size int64) int64 {
	switch {
	case size <= 1<<30:
		return 8 * mib
	case size <= 100<<30:
		return 16 * mib
	case size <= 32<<40:
		return 32 * mib
	}
	return 64 * mib
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }

// physical is the pool's filesystem.
type physical struct{ total, free int64 }

func (p *Pool) physical() (physical, error) {
	st, err := p.tree.Statfs()
	if err != nil {
		return physical{}, err
	}
	unit := uint64(max(st.Bsize, 1))
	if st.Frsize > 0 {
		unit = uint64(st.Frsize)
	}
	return physical{total: bytesOf(st.Blocks, unit), free: bytesOf(st.Bavail, unit)}, nil
}

// bytesOf multiplies; servers without a limit report nonsense close to 2^64.
func bytesOf(blocks, unit uint64) int64 {
	if blocks > math.MaxInt64/2/unit {
		return math.MaxInt64 / 2
	}
	return int64(blocks * unit)
}

// room is what may still be committed (I-POOL-8):
//
//	dynamic: min(total x overcommit - committed, free x overcommit) - reserve
//	fixed:   also at most free - reserve - what fixed images under way will take
//
// committed includes what is under way. free bounds it too because other files
// may share the filesystem.
func (p *Pool) room(a *account, ph physical) (dynamic, fixed int64) {
	committed, pending := a.reserved()
	policy := scale(ph.total, p.overcommit) - committed
	dynamic = min(policy, scale(ph.free, p.overcommit)) - p.reserve
	fixed = min(dynamic, ph.free-pending-p.reserve)
	return max(dynamic, 0), max(fixed, 0)
}

func scale(n int64, by float64) int64 {
	return int64(min(float64(n)*by, math.MaxInt64/4))
}

// The bounds that a SpaceError names.
const (
	boundPolicy = "the bound on committed bytes"
	boundFree   = "the free space of the filesystem"
)

func (p *Pool) checkRoom(a *account, o *operation) error {
	ph, err := p.disk()
	if err != nil {
		return err
	}
	have, fixed := p.room(a, ph)
	if o.Fixed {
		have = fixed
	}
	if o.Bytes <= have {
		return nil
	}
	policy, _ := p.room(a, physical{total: ph.total, free: ph.total})
	e := &SpaceError{Pool: p.name, Want: o.Bytes, Have: have, Bound: boundFree}
	if have == policy {
		e.Bound = boundPolicy
	}
	return e
}

// Capacity says what the pool has, has promised and can still promise.
func (p *Pool) Capacity(ctx context.Context) (Capacity, error) {
	a, err := p.readAccount()
	if errors.Is(err, errNoAccount) {
		a, err = p.recountNow(ctx)
	}
	if err != nil {
		return Capacity{}, err
	}
	ph, err := p.disk()
	if err != nil {
		return Capacity{}, err
	}
	c := Capacity{Total: ph.total, Maximum: maxSize}
	c.Committed, _ = a.reserved()
	dynamic, fixed := p.room(a, ph)
	c.Available, c.AvailableFixed = largest(dynamic), largest(fixed)
	return c, nil
}

// largest is the largest size whose footprint, with default parameters, fits
// into room.
func largest(room int64) int64 {
	lo, hi := int64(0), min(room, maxSize)/mib // in MiB; lo fits
	for lo < hi {
		mid := (lo + hi + 1) / 2
		if footprint(mid*mib, Params{}) <= room {
			lo = mid
		} else {
			hi = mid - 1
		}
	}
	return lo * mib
}

// recountNow makes the account if it is missing.
func (p *Pool) recountNow(ctx context.Context) (*account, error) {
	s, err := p.newSession(hash{}, func(s *session) error { return s.enter(ctx) })
	if err != nil {
		return nil, err
	}
	defer s.close()
	if err := s.recount(ctx); err != nil {
		return nil, err
	}
	return p.readAccount()
}
