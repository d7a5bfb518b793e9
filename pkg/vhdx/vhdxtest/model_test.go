package vhdxtest_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

var errTest = errors.New("test")

// sector makes one sector of content without telling the model m.
func sector(world uint64, s int64, gen int) []byte {
	m := vhdxtest.NewModel(world, 1<<20)
	var c *vhdxtest.Change
	for range gen {
		c = m.Write(s*512, 512)
	}
	return c.Data
}

// may lists the generations of sector 3 that a check accepts.
func may(check func([]byte, int64, *vhdxtest.Observed) error) []int {
	var all []int
	for gen := range 6 {
		p := make([]byte, 512)
		if gen > 0 {
			p = sector(1, 3, gen)
		}
		if check(p, 3*512, nil) == nil {
			all = append(all, gen)
		}
	}
	return all
}

func wantMay(t *testing.T, m *vhdxtest.Model, when string, live, cut []int) {
	t.Helper()
	if diff := cmp.Diff(live, may(m.CheckLive)); diff != "" {
		t.Fatalf("%s: live: %s", when, diff)
	}
	if diff := cmp.Diff(cut, may(m.CheckCut)); diff != "" {
		t.Fatalf("%s: after a cut: %s", when, diff)
	}
}

func TestModelOfOneSector(t *testing.T) {
	m := vhdxtest.NewModel(1, 1<<20)
	wantMay(t, m, "new", []int{0}, []int{0})
	one := m.Write(1024, 1024)
	wantMay(t, m, "1 in flight", []int{0, 1}, []int{0, 1})
	one.Done(nil)
	wantMay(t, m, "1 written", []int{1}, []int{0, 1})
	flushed := m.Flush()
	two := m.Write(1536, 512)
	two.Done(nil)
	flushed(nil)
	wantMay(t, m, "2 written during a flush", []int{2}, []int{1, 2})
	m.Flush()(errTest)
	wantMay(t, m, "flush failed", []int{2}, []int{1, 2})
	three := m.Write(1536, 512)
	three.Done(errTest)
	wantMay(t, m, "3 failed", []int{2, 3}, []int{1, 2, 3})
	m.Flush()(nil)
	wantMay(t, m, "flushed after a failure", []int{2, 3}, []int{2, 3})
	zero := m.Zero(0, 4096)
	wantMay(t, m, "zeros in flight", []int{0, 2, 3}, []int{0, 2, 3})
	zero.Done(nil)
	wantMay(t, m, "zeros written", []int{0}, []int{0, 2, 3})
	m.Flush()(nil)
	wantMay(t, m, "zeros flushed", []int{0}, []int{0})
}

func TestModelKnowsForeignBytes(t *testing.T) {
	m := vhdxtest.NewModel(1, 1<<20)
	m.Write(3*512, 512).Done(nil)
	mixed := append(sector(1, 3, 1)[:256:256], make([]byte, 256)...)
	for name, p := range map[string][]byte{
		"another sector's":      sector(1, 4, 1),
		"another model's":       sector(2, 3, 1),
		"a mix":                 mixed,
		"unknown":               []byte(strings.Repeat("?", 512)),
		"where none is allowed": nil,
	} {
		off := int64(3 * 512)
		if p == nil {
			off, p = 9*512, sector(1, 9, 1)
			if err := m.CheckCut(p, off, nil); err == nil || errors.Is(err, vhdxtest.ErrForeign) {
				t.Fatalf("%s: %v", name, err)
			}
			continue
		}
		err := m.CheckCut(append(make([]byte, 512), p...), off-512, nil)
		if !errors.Is(err, vhdxtest.ErrForeign) || !strings.Contains(err.Error(), "sector 0x3") {
			t.Fatalf("%s: %v", name, err)
		}
		t.Logf("%s: %v", name, err)
	}
}

// A read may show any version that was there while it was under way.
func TestModelOfReadsBesideWrites(t *testing.T) {
	m := vhdxtest.NewModel(1, 1<<20)
	m.Write(3*512, 512).Done(nil)
	since := m.Version()
	m.Write(3*512, 512).Done(nil)
	m.Write(3*512, 512)
	check := func(p []byte, off int64, _ *vhdxtest.Observed) error { return m.CheckRead(p, off, since) }
	if diff := cmp.Diff([]int{1, 2, 3}, may(check)); diff != "" {
		t.Fatalf("a read that began before the second write: %s", diff)
	}
}

// After a cut what was seen is what there is; after a restart a cut may still
// undo it, until a flush.
func TestModelGoesOn(t *testing.T) {
	m := vhdxtest.NewModel(1, 1<<20)
	m.Write(3*512, 512).Done(nil)
	m.Flush()(nil)
	m.Write(3*512, 512).Done(nil)
	grow := m.Resize(2 << 20)
	seen := vhdxtest.NewObserved(1 << 20)
	if err := m.CheckCut(sector(1, 3, 1), 3*512, seen); err != nil {
		t.Fatalf("CheckCut: %v", err)
	}
	cut := m.After(seen)
	wantMay(t, cut, "after a cut", []int{1}, []int{1})
	if cut.Size() != 1<<20 || cut.CheckSize(2<<20) == nil {
		t.Fatalf("size after a cut: %#x, %v", cut.Size(), cut.CheckSize(2<<20))
	}
	grow.Done(errTest)
	again := vhdxtest.NewObserved(2 << 20)
	if err := m.CheckCut(sector(1, 3, 2), 3*512, again); err != nil {
		t.Fatalf("CheckCut: %v", err)
	}
	if diff := seen.Difference(again); diff != "virtual size 0x100000 or 0x200000" {
		t.Fatalf("Difference: %q", diff)
	}
	restarted := m.Restarted(again)
	wantMay(t, restarted, "after a restart", []int{2}, []int{1, 2})
	if restarted.Size() != 2<<20 || restarted.CheckSize(1<<20) != nil {
		t.Fatalf("size after a restart: %#x, %v", restarted.Size(), restarted.CheckSize(1<<20))
	}
	restarted.Flush()(nil)
	wantMay(t, restarted, "flushed", []int{2}, []int{2})
	restarted.Resize(3 << 20).Done(nil)
	if restarted.CheckSize(2<<20) == nil || restarted.Size() != 3<<20 {
		t.Fatalf("a resize is not durable once it is done")
	}
	c := restarted.Write(3*512, 512)
	if string(c.Data) != string(sector(1, 3, 3)) {
		t.Fatalf("generations do not go on")
	}
}

func TestModelTouched(t *testing.T) {
	m := vhdxtest.NewModel(1, 1<<20)
	m.Write(8192, 2048)
	m.Zero(512, 512)
	m.Write(1024, 512)
	want := []vhdxtest.Extent{{Off: 512, N: 1024}, {Off: 8192, N: 1024}, {Off: 9216, N: 1024}}
	if diff := cmp.Diff(want, m.Touched(1024)); diff != "" {
		t.Fatalf("Touched: %s", diff)
	}
}
