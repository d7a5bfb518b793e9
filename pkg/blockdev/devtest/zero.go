package devtest

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// zeroings are the ways to make a range of a device read zero.
var zeroings = []struct {
	name string
	do   func(f *file, off, n int64) error
	// kinds are the image's methods that may do it.
	kinds []string
}{
	{"BLKDISCARD", func(f *file, off, n int64) error { return f.zeroRange(blkDiscard, off, n) }, []string{"discard"}},
	{"BLKZEROOUT", func(f *file, off, n int64) error { return f.zeroRange(blkZeroOut, off, n) }, []string{"zero"}},
	{"punch hole", func(f *file, off, n int64) error {
		return f.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	}, []string{"discard", "zero"}},
	{"zero range", func(f *file, off, n int64) error {
		return f.fallocate(unix.FALLOC_FL_ZERO_RANGE, off, n)
	}, []string{"zero"}},
}

// testZeroing: the range reads zero, what is beside it stays.
func testZeroing(t *testing.T, b Backend) {
	const size = 32 * mib
	im := b.NewImage(t, size, 512)
	d := attach(t, b, im)
	f := open(t, d, unix.O_DIRECT)
	r := random(t)
	model := make([]byte, size)
	fill(r, model)
	buf := aligned(mib)
	for off := int64(0); off < size; off += mib {
		copy(buf, model[off:])
		if _, err := f.WriteAt(buf, off); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 40 {
		z := zeroings[i%len(zeroings)]
		off, n := someRange(r, size, 512)
		if err := z.do(f, off, n); err != nil {
			t.Fatalf("%s of %#x+%#x: %v", z.name, off, n, err)
		}
		clear(model[off : off+n])
		// A write into a zeroed range must find its block again.
		if i%3 == 0 {
			p := aligned(512)
			fill(r, p)
			if _, err := f.WriteAt(p, off); err != nil {
				t.Fatal(err)
			}
			copy(model[off:], p)
		}
	}
	readAll(t, f, model)
	if err := f.sync(); err != nil {
		t.Fatal(err)
	}
	imageHolds(t, im, model)
}

// testZeroingCalls: each kind arrives as the method meant for it, and as
// nothing else.
func testZeroingCalls(t *testing.T, b Backend) {
	im := NewMemImage(16*mib, 512)
	d := attach(t, b, im)
	f := open(t, d, unix.O_DIRECT)
	for _, z := range zeroings {
		im.Record()
		if err := z.do(f, mib, 2*mib); err != nil {
			t.Errorf("%s: %v", z.name, err)
			continue
		}
		var covered int64
		for _, op := range im.Recorded() {
			if op.Kind == "read" || op.Kind == "flush" {
				continue
			}
			if !slices.Contains(z.kinds, op.Kind) {
				t.Errorf("%s arrives as %+v", z.name, op)
			}
			covered += op.N
		}
		if covered != 2*mib {
			t.Errorf("%s of 2 MiB covers %#x bytes", z.name, covered)
		}
	}
}
