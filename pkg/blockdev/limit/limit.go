// Package limit decides when a request may begin so that a device keeps within
// its limits. It holds no request and knows no clock: whoever serves asks it,
// from one goroutine, with the time it is. So it needs no lock and allocates
// nothing, which rules golang.org/x/time/rate out.
package limit

import (
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
)

// slack is what may be used ahead in any case: wake-ups come late by some
// milliseconds, and what was not used meanwhile must not be lost.
const slack = 50 * time.Millisecond

// Shaper keeps two token buckets, for requests and for bytes. The zero value
// lets everything pass.
type Shaper struct{ requests, bytes bucket }

// bucket is a token bucket told by one number: when it will be full again. That
// it has credit for depth means that it may be full later than now by that much.
type bucket struct {
	rate  int64 // tokens a second; 0: no limit
	depth time.Duration
	full  time.Duration
}

// Set changes the limits. What was used ahead stays used, as far as the new
// limits let anybody use ahead.
func (s *Shaper) Set(l blockdev.Limits, now time.Duration) {
	depth := max(slack, time.Duration(l.Burst)*time.Second)
	s.requests.set(l.IOPS, depth, now)
	s.bytes.set(l.Bandwidth, depth, now)
}

func (b *bucket) set(rate int64, depth, now time.Duration) {
	b.rate, b.depth, b.full = rate, depth, min(b.full, now+depth)
}

// Take charges a request of n bytes if it may begin now. A request larger than
// the bucket begins when that is full, and the next ones pay for it.
func (s *Shaper) Take(n int64, now time.Duration) bool {
	if s.Wait(now) > 0 {
		return false
	}
	s.requests.charge(1, now)
	s.bytes.charge(n, now)
	return true
}

// Wait is how long nothing may begin.
func (s *Shaper) Wait(now time.Duration) time.Duration {
	return max(s.requests.wait(now), s.bytes.wait(now), 0)
}

func (b *bucket) wait(now time.Duration) time.Duration {
	if b.rate == 0 {
		return 0
	}
	return b.full - now - b.depth
}

func (b *bucket) charge(n int64, now time.Duration) {
	if b.rate == 0 {
		return
	}
	// A request has at most some MiB: this does not overflow.
	b.full = max(b.full, now) + time.Duration(n*int64(time.Second)/b.rate)
}
