package fuseloop

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
)

// BenchmarkLimits changes the limits of a device again and again under the I/O
// of a process that asks for all it can get, reads and writes alike, and says
// how far what it got is from what was set.
func BenchmarkLimits(b *testing.B) {
	needRoot(b)
	if _, err := exec.LookPath("fio"); err != nil {
		b.Skip("needs fio")
	}
	count := new(blockdev.Counters)
	d, err := New(Options{}).Attach(b.Context(), blockdev.Config{
		ID: fmt.Sprint(b.Name(), os.Getpid()), Image: rawFile(b, 256<<20, 512), Count: count,
	})
	if err != nil {
		b.Fatal(err)
	}
	load := func(size string) func() {
		// Nice, as the engine's thread is: what is measured is the limit, not who
		// else uses the machine.
		fio := exec.Command("nice", "-n", "-20", "fio", "--name=load", "--filename="+d.Path(), "--direct=1", "--ioengine=libaio", "--rw=randrw",
			"--bs="+size, "--iodepth=16", "--time_based", "--runtime=1h", "--norandommap")
		if err := fio.Start(); err != nil {
			b.Fatal(err)
		}
		d.(blockdev.Limiter).SetLimits(blockdev.Limits{})
		for before := count.Load(); count.Load().Done[blockdev.Write] < before.Done[blockdev.Write]+100; {
			time.Sleep(10 * time.Millisecond) // until it has begun
		}
		return func() { _, _ = fio.Process.Signal(os.Interrupt), fio.Wait() }
	}
	worst := 0.0
	for b.Loop() {
		for _, set := range []struct {
			size   string
			limits []blockdev.Limits
		}{
			{"4k", []blockdev.Limits{{}, {IOPS: 100}, {IOPS: 3000}, {IOPS: 500}, {Bandwidth: 4 << 20}, {IOPS: 2000}}},
			{"256k", []blockdev.Limits{{}, {Bandwidth: 10 << 20}, {Bandwidth: 100 << 20}, {Bandwidth: 25 << 20}, {IOPS: 50}}},
		} {
			end := load(set.size)
			for _, l := range set.limits {
				worst = max(worst, keeps(b, d, count, set.size, l))
			}
			end()
		}
	}
	b.ReportMetric(worst, "%off-at-worst")
	if err := d.Detach(b.Context()); err != nil {
		b.Fatal(err)
	}
}

// keeps sets a limit under I/O and says by how many percent it is missed.
func keeps(b *testing.B, d blockdev.Device, count *blockdev.Counters, size string, l blockdev.Limits) float64 {
	d.(blockdev.Limiter).SetLimits(l)
	time.Sleep(300 * time.Millisecond) // what the limit before has let through
	took := func() (requests, bytes [2]uint64) {
		n := count.Load()
		return [2]uint64{n.Done[blockdev.Read], n.Done[blockdev.Write]}, [2]uint64{n.Bytes[blockdev.Read], n.Bytes[blockdev.Write]}
	}
	requests, bytes := took()
	began := time.Now()
	time.Sleep(3 * time.Second)
	moreRequests, moreBytes := took()
	seconds := time.Since(began).Seconds()
	rate := func(more, less [2]uint64) (all, reads float64) {
		r, w := float64(more[0]-less[0]), float64(more[1]-less[1])
		return (r + w) / seconds, r / (r + w) * 100
	}
	want := float64(l.IOPS)
	got, reads := rate(moreRequests, requests)
	if l == (blockdev.Limits{}) {
		b.Logf("requests of %-4s without a limit: %.0f a second", size, got)
		return 0
	}
	if l.Bandwidth > 0 {
		want = float64(l.Bandwidth)
		got, reads = rate(moreBytes, bytes)
	}
	off := (got/want - 1) * 100
	b.Logf("requests of %-4s limit %+v: %.0f a second, %+.2f %%, %.0f %% of it reads", size, l, got, off, reads)
	return max(off, -off)
}
