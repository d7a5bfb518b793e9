package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// discard makes whole blocks of a volume, or parts of them, read zero.
func (d *disks) discard(id string) {
	n := 4096 * (1 + d.rnd.IntN(600))
	off := d.rnd.IntN((testDisk-n)/4096) * 4096
	if err := d.image(id).Discard(int64(off), int64(n)); err != nil {
		d.t.Fatalf("discard %s: %v", id, err)
	}
	clear(d.vol[id][off : off+n])
}

// checkMaps: a copy of base with the changes of target laid over it is target,
// and a blank disk with what is allocated.
func (d *disks) checkMaps(target, base string) error {
	want := d.snap[target]
	off := int64(0)
	if d.rnd.IntN(3) == 0 {
		off = d.rnd.Int64N(testDisk + 1)
	}
	over := func(disk []byte, walk func(fn func(Range) error) (int64, error)) error {
		disk = bytes.Clone(disk)
		copy(disk[:off], want)
		last := int64(-1)
		size, err := walk(func(r Range) error {
			if r.Offset <= last || r.Length <= 0 || r.Disk != testDisk || r.Offset < off {
				return fmt.Errorf("%+v behind %#x, from %#x on", r, last, off)
			}
			last = r.Offset + r.Length
			copy(disk[r.Offset:last], want[r.Offset:])
			return nil
		})
		switch {
		case err != nil:
			return err
		case size != testDisk || !bytes.Equal(disk, want):
			return fmt.Errorf("from %#x on, of a disk of %d bytes: something is left out", off, size)
		}
		return nil
	}
	ctx := d.t.Context()
	err := over(d.snap[base], func(fn func(Range) error) (int64, error) { return d.s.Delta(ctx, base, target, off, fn) })
	if err != nil {
		return fmt.Errorf("delta: %w", err)
	}
	return over(make([]byte, testDisk), func(fn func(Range) error) (int64, error) { return d.s.Allocated(ctx, target, off, fn) })
}

// TestDeltas: I-POOL-19, between any snapshots there are, in any order of age, while
// others are deleted, clones made, volumes deleted and layers merged.
func TestDeltas(t *testing.T) {
	seeds := uint64(4)
	if testing.Short() {
		seeds = 1 // of minutes, under the race detector
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { randomDeltas(newDisks(t, 100+seed)) })
	}
}

func randomDeltas(d *disks) {
	of := map[string]string{} // volumes of snapshots
	v := d.create(Source{}, make([]byte, testDisk))
	for step := range 120 {
		snap := pick(d, d.snap)
		switch k := d.rnd.IntN(20); {
		case k < 6:
			d.write(v)
		case k < 8:
			d.discard(v)
		case k < 12 && len(d.snap) < 14:
			of[d.snapshot(v)] = v
		case k < 14 && len(d.snap) > 3:
			d.deleteSnapshot(snap)
		case k < 15 && snap != "" && len(d.vol) < 4:
			mode := []CloneMode{CloneLink, CloneCopy}[d.rnd.IntN(2)]
			v = d.create(Source{Snapshot: snap, Mode: mode}, d.snap[snap])
		case k < 16 && len(d.vol) > 2:
			d.deleteVolume(v)
			v = pick(d, d.vol)
		case k < 18:
			d.tend(v)
		default:
			v = pick(d, d.vol)
		}
		if step%20 == 19 {
			checkAllMaps(d, of)
		}
	}
	d.tendAll()
	checkAllMaps(d, of)
}

func checkAllMaps(d *disks, of map[string]string) {
	for _, target := range slices.Sorted(maps.Keys(d.snap)) {
		for range 5 {
			base := pick(d, d.snap)
			err := d.checkMaps(target, base)
			if err != nil && (of[target] == of[base] || !errors.Is(err, vhdx.ErrUnrelated)) {
				d.t.Fatalf("snapshot %s of %s against %s of %s: %v", target, of[target], base, of[base], err)
			}
		}
	}
}

// ranges collects what a map names.
func ranges(t *testing.T, walk func(fn func(Range) error) (int64, error)) (all [][2]int64) {
	t.Helper()
	_, err := walk(func(r Range) error {
		all = append(all, [2]int64{r.Offset, r.Length})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// A delta names what was written and what the disk has grown by, to the sector,
// also after the layers between have been merged.
func TestDeltaIsExact(t *testing.T) {
	d := newDisks(t, 1)
	ctx := t.Context()
	v := d.create(Source{}, make([]byte, testDisk))
	d.write(v)
	base := d.snapshot(v)
	var between []string
	want := [][2]int64{}
	for i := range int64(6) {
		off := i*testBlock + 512*i
		if _, err := d.image(v).WriteAt(bytes.Repeat([]byte{7}, 512), off); err != nil {
			t.Fatal(err)
		}
		want = append(want, [2]int64{off, 512})
		copy(d.vol[v][off:], bytes.Repeat([]byte{7}, 512))
		between = append(between, d.snapshot(v))
	}
	d.close(v)
	const grown = testDisk + 3*testBlock
	if _, err := d.s.Resize(ctx, v, grown); err != nil {
		t.Fatal(err)
	}
	want = append(want, [2]int64{testDisk, grown - testDisk})
	snap, err := d.s.ReserveSnapshot(ctx, SnapshotSpec{Name: "last", Volume: v})
	if err == nil {
		snap, err = d.s.Cut(ctx, snap.ID, Live{})
	}
	if err != nil {
		t.Fatal(err)
	}
	check := func(when string) {
		t.Helper()
		delta := func(base, target string) [][2]int64 {
			return ranges(t, func(fn func(Range) error) (int64, error) { return d.s.Delta(ctx, base, target, 0, fn) })
		}
		if got := delta(base, snap.ID); !slices.Equal(got, want) {
			t.Fatalf("%s: %x, want %x", when, got, want)
		}
		if got := delta(snap.ID, base); !slices.Equal(got, want[:6]) { // its disk ends before what has grown
			t.Fatalf("%s, backwards: %x, want %x", when, got, want[:6])
		}
		if got := delta(base, base); len(got) != 0 {
			t.Fatalf("%s: a snapshot differs from itself at %x", when, got)
		}
	}
	check("before")
	for _, id := range between {
		d.deleteSnapshot(id)
	}
	before, err := d.s.Volume(ctx, v)
	if err != nil {
		t.Fatal(err)
	}
	d.tend(v)
	if after, err := d.s.Volume(ctx, v); err != nil || after.Layers >= before.Layers {
		t.Fatalf("nothing was merged: %d layers, were %d (%v)", after.Layers, before.Layers, err)
	}
	check("merged")
	d.deleteVolume(v)
	check("volume deleted")
}

func TestMapsRefuse(t *testing.T) {
	d := newDisks(t, 2)
	ctx := t.Context()
	a, b := d.create(Source{}, make([]byte, testDisk)), d.create(Source{}, make([]byte, testDisk))
	d.write(a)
	d.write(b)
	of, other := d.snapshot(a), d.snapshot(b)
	untaken, err := d.s.ReserveSnapshot(ctx, SnapshotSpec{Name: "untaken", Volume: a})
	if err != nil {
		t.Fatal(err)
	}
	none := func(Range) error { t.Error("something was named"); return nil }
	delta := func(base, target string, off int64) error {
		_, err := d.s.Delta(ctx, base, target, off, none)
		return err
	}
	for _, id := range append(badIDs, a, untaken.ID) {
		_, err := d.s.Allocated(ctx, id, 0, none)
		wantErr(t, "Allocated", err, ErrNoSnapshot)
		wantErr(t, "Delta from", delta(id, of, 0), ErrNoSnapshot)
		wantErr(t, "Delta to", delta(of, id, 0), ErrNoSnapshot)
	}
	wantErr(t, "Delta of two volumes", delta(of, other, 0), vhdx.ErrUnrelated, "full backup")
	wantErr(t, "Delta from behind the end", delta(of, of, testDisk+1), vhdx.ErrOutOfRange)
	wantErr(t, "Delta from a negative offset", delta(of, of, -1), vhdx.ErrOutOfRange)
	if err := delta(of, of, testDisk); err != nil {
		t.Errorf("Delta from the end: %v", err)
	}
}

// What a map is being made of stays until it is done (I-POOL-16).
func TestMapKeepsItsLayers(t *testing.T) {
	d := newDisks(t, 3)
	v := d.create(Source{}, make([]byte, testDisk))
	d.write(v)
	snap := d.snapshot(v)
	d.deleteVolume(v)
	want, called := d.snap[snap], false
	got := make([]byte, testDisk)
	_, err := d.s.Allocated(t.Context(), snap, 0, func(r Range) error {
		if !called {
			called = true
			d.deleteSnapshot(snap)
			if tended, err := d.s.Tend(context.Background(), v, Tender{}); err != nil || tended.Removed > 0 {
				t.Errorf("%d layers were removed (%v)", tended.Removed, err)
			}
		}
		copy(got[r.Offset:r.Offset+r.Length], want[r.Offset:])
		return nil
	})
	if err != nil || !called || !bytes.Equal(got, want) {
		t.Fatalf("called %v, %v", called, err)
	}
	d.tendAll()
	if left := imagesLeft(t, d.p); left != 0 {
		t.Fatalf("%d images are left", left)
	}
}
