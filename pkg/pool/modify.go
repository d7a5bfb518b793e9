package pool

import (
	"context"
	"fmt"
)

// Limits bound what a volume's device does in a second. Zero: no limit.
type Limits struct {
	IOPS      int64 `json:"iops,omitempty"`      // requests
	Bandwidth int64 `json:"bandwidth,omitempty"` // bytes
	// Burst is for how many seconds an allowance that was not used is kept.
	Burst int64 `json:"burst,omitempty"`
}

// OnFull says what becomes of writes when the share is full.
type OnFull string

// What can be said. OnFullDefault: pause, where the share lets that be.
const (
	OnFullDefault OnFull = ""
	OnFullPause   OnFull = "pause"
	OnFullError   OnFull = "error"
)

// Bounds of what a volume may be limited to.
const (
	MaxRate  = 1 << 50 // of IOPS and Bandwidth: beyond any device
	MaxBurst = 3600
)

// Change is what to change of a volume that is in use. Nil: as it is.
type Change struct {
	IOPS, Bandwidth, Burst *int64
	OnFull                 *OnFull
}

// Apply gives what holds after the change.
func (c Change) Apply(l Limits, o OnFull) (Limits, OnFull) {
	set := func(to, from *int64) {
		if from != nil {
			*to = *from
		}
	}
	set(&l.IOPS, c.IOPS)
	set(&l.Bandwidth, c.Bandwidth)
	set(&l.Burst, c.Burst)
	if c.OnFull != nil {
		o = *c.OnFull
	}
	return l, o
}

// fault says what is wrong with limits, "" for nothing.
func (l Limits) fault() string {
	if l.IOPS < 0 || l.IOPS > MaxRate || l.Bandwidth < 0 || l.Bandwidth > MaxRate || l.Burst < 0 || l.Burst > MaxBurst {
		return fmt.Sprintf("limits %+v: rates are from 0 to %d, burst from 0 to %d s", l, int64(MaxRate), MaxBurst)
	}
	return ""
}

func (o OnFull) fault() string {
	if o != OnFullDefault && o != OnFullPause && o != OnFullError {
		return fmt.Sprintf("onFull is %.32q, neither pause nor error", string(o))
	}
	return ""
}

func (r *record) limits() Limits {
	if r.Limits == nil {
		return Limits{}
	}
	return *r.Limits
}

func (r *record) setLimits(l Limits) {
	if r.Limits = nil; l != (Limits{}) {
		r.Limits = &l
	}
}

// onFull is what holds now: what it was changed to, or made with.
func (r *record) onFull() OnFull {
	if r.OnFull != OnFullDefault {
		return r.OnFull
	}
	return r.Params.OnFull
}

// SetLimits records the volume's limits. ErrNotFound, ErrInvalid.
func (s *Set) SetLimits(ctx context.Context, id string, l Limits) error {
	_, err := s.Modify(ctx, id, Change{IOPS: &l.IOPS, Bandwidth: &l.Bandwidth, Burst: &l.Burst})
	return err
}

// Modify records a change; who serves the volume has to be told. It is made
// whole or not at all. ErrNotFound, ErrInvalid.
func (s *Set) Modify(ctx context.Context, id string, c Change) (Volume, error) {
	p, v, err := s.of(id)
	if err != nil {
		return Volume{}, err
	}
	var vol Volume
	err = p.update(ctx, v, func(r *record) error {
		l, o := c.Apply(r.limits(), r.OnFull)
		for _, fault := range []string{l.fault(), o.fault()} {
			if fault != "" {
				return fmt.Errorf("volume %s: %w: %s", id, ErrInvalid, fault)
			}
		}
		same := l == r.limits() && o == r.OnFull
		r.setLimits(l)
		r.OnFull = o
		vol = p.volume(r)
		if same {
			return errSame
		}
		return nil
	})
	return vol, p.notWritable(err)
}
