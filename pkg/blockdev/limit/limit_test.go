package limit

import (
	"testing"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
)

// run is how many requests of n bytes begin from one time to another, if
// whoever asks comes back late by as much as step.
func run(s *Shaper, n int64, from, to, step time.Duration) (begun int64) {
	for now := from; now < to; now += step {
		for s.Take(n, now) {
			begun++
		}
	}
	return begun
}

func within(t *testing.T, what string, got, want int64, percent float64) {
	t.Helper()
	if d := float64(got-want) / float64(want) * 100; d > percent || d < -percent {
		t.Fatalf("%s: %d, want %d (%.2f %% off)", what, got, want, d)
	}
}

func TestRates(t *testing.T) {
	const size = 4096
	for _, c := range []struct {
		l    blockdev.Limits
		want int64 // requests in 10 s
	}{
		{blockdev.Limits{IOPS: 100}, 1000},
		{blockdev.Limits{IOPS: 33333}, 333330},
		{blockdev.Limits{Bandwidth: 10 << 20}, 10 * 10 << 20 / size},
		{blockdev.Limits{IOPS: 500, Bandwidth: 1 << 30}, 5000},
		{blockdev.Limits{IOPS: 500000, Bandwidth: 1 << 20}, 10 << 20 / size},
	} {
		for _, step := range []time.Duration{50 * time.Microsecond, time.Millisecond, 7 * time.Millisecond} {
			var s Shaper
			s.Set(c.l, 0)
			within(t, "requests", run(&s, size, 0, 10*time.Second, step), c.want, 1)
		}
	}
}

// Large requests are charged in full although each is more than the bucket.
func TestLargeRequests(t *testing.T) {
	var s Shaper
	s.Set(blockdev.Limits{Bandwidth: 1 << 20}, 0)
	within(t, "MiB", run(&s, 1<<20, 0, 100*time.Second, time.Millisecond), 100, 2)
}

// Unused allowance is kept for as long as Burst says, and no longer.
func TestBurst(t *testing.T) {
	var s Shaper
	s.Set(blockdev.Limits{IOPS: 100, Burst: 10}, 0)
	within(t, "at once", run(&s, 0, 0, 1, 1), 1000, 1)
	within(t, "afterwards", run(&s, 0, time.Second, 2*time.Second, time.Millisecond), 200, 2)
	within(t, "after an hour", run(&s, 0, time.Hour, time.Hour+1, 1), 1000, 1)
}

// A change holds from the moment it is made, up and down, and gives no more
// ahead than the new limits do.
func TestChange(t *testing.T) {
	var s Shaper
	s.Set(blockdev.Limits{IOPS: 1, Burst: 3600}, 0)
	run(&s, 0, 0, 1, 1)
	now := time.Second
	for _, rate := range []int64{1000, 50000, 200} {
		s.Set(blockdev.Limits{IOPS: rate}, now)
		within(t, "requests", run(&s, 0, now, now+10*time.Second, time.Millisecond), 10*rate, 2)
		now += 10 * time.Second
	}
	s.Set(blockdev.Limits{}, now)
	for range 1000000 {
		if !s.Take(1<<20, now) {
			t.Fatal("a request waits without a limit")
		}
	}
}

func TestNothingIsAllocated(t *testing.T) {
	var s Shaper
	s.Set(blockdev.Limits{IOPS: 1000, Bandwidth: 1 << 20}, 0)
	now := time.Duration(0)
	if n := testing.AllocsPerRun(1000, func() { now += time.Millisecond; s.Take(4096, now) }); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}
