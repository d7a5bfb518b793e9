package vhdx_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

func repair(t *testing.T, f vhdx.File, o vhdx.RepairOptions) *vhdx.Report {
	t.Helper()
	r, err := vhdx.Repair(t.Context(), f, o)
	if err != nil {
		t.Fatalf("repair: %v", err)
	}
	return r
}

func TestRepair(t *testing.T) {
	for _, d := range damages {
		t.Run(d.name, func(t *testing.T) {
			s := d.made(t)
			before := s.Hash()
			was, _ := vhdxtest.Headers(s.File)
			dry := repair(t, s.File, vhdx.RepairOptions{DryRun: true})
			if diff := cmp.Diff(d.finds, found(dry)); diff != "" || s.Hash() != before || dry.Repaired != 0 || dry.After != nil {
				t.Fatalf("a dry run changed the file, or found something else: %s", diff)
			}
			r := repair(t, s.File, vhdx.RepairOptions{})
			if diff := cmp.Diff(d.finds, found(r)); diff != "" {
				t.Fatalf("findings: %s", diff)
			}
			left := check(t, s.File)
			if diff := cmp.Diff(d.left, found(left)); diff != "" {
				t.Fatalf("left: %s\n%v\n%v", diff, r.Done, left.Findings)
			}
			if (r.After == nil) != (len(r.Done) == 0) || (r.Repaired == 0) != (len(r.Done) == 0) || (s.Hash() == before) != (len(r.Done) == 0) {
				t.Fatalf("did %v, counts %d, changed the file: %v", r.Done, r.Repaired, s.Hash() != before)
			}
			if n := s.Snapshot().Undecided(); n > 0 {
				t.Fatalf("done with %d operations that are not durable", n)
			}
			if d.shows == 0 && d.like == nil {
				return
			}
			if err := d.opened(s.File); err != nil {
				t.Fatal(err)
			}
			now, err := vhdxtest.Headers(s.File)
			if err != nil || len(r.Done) > 0 && (len(now) != 2 || now[0].DataWriteGUID != was[0].DataWriteGUID || now[1].DataWriteGUID != now[0].DataWriteGUID || !now[0].Clean()) {
				t.Fatalf("headers after the repair: %+v, %v", now, err)
			}
			again := repair(t, s.File, vhdx.RepairOptions{})
			if (again.Repaired != 0) != d.again {
				t.Fatalf("a second repair did %v", again.Done)
			}
			if d.again && (!again.After.Clean() || len(again.After.Findings) > 0) {
				t.Fatalf("a second repair leaves %v", again.After.Findings)
			}
			if err := d.opened(s.File); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// opened opens a copy of the image, for reading and for writing, and checks
// what it shows.
func (d damage) opened(f *vhdxtest.File) error {
	for _, readOnly := range []bool{true, false} {
		im, err := vhdx.Open(f.Clone(), vhdx.OpenOptions{ReadOnly: readOnly})
		if err != nil {
			return fmt.Errorf("read-only %v: %w", readOnly, err)
		}
		err = d.check(im)
		if !readOnly && err == nil {
			if _, err = im.WriteAt(make([]byte, 512), im.Size()-512); err == nil {
				err = im.Flush()
			}
		}
		if err := errors.Join(err, im.Close()); err != nil {
			return fmt.Errorf("read-only %v: %w", readOnly, err)
		}
	}
	return nil
}

// Cut at every step, in several ways each, a repair leaves an image that the
// next repairs end, and that shows what it should whenever it opens (I-REP-1,
// I-REP-2).
func TestRepairCut(t *testing.T) {
	images, plans := 0, 20
	if testing.Short() || raceEnabled {
		plans = 4
	}
	for _, d := range damages {
		if d.finds == nil || len(d.left) > 0 && !d.dirty && !d.again || d.shows == 0 && d.like == nil {
			continue
		}
		t.Run(d.name, func(t *testing.T) {
			n, err := d.cut(t, vhdx.RepairOptions{}, plans)
			if err != nil {
				t.Fatal(err)
			}
			images += n
		})
	}
	t.Logf("%d images", images)
}

// cut repairs a spoiled image and judges what power cuts on the way leave.
func (d damage) cut(t *testing.T, o vhdx.RepairOptions, plans int) (images int, failed error) {
	s := d.made(t)
	opened := d.opened(s.File) == nil
	start := s.Clone()
	s.OnStep(func(snap *vhdxtest.Snapshot) {
		for i := range plans {
			if failed != nil {
				return
			}
			if i > 0 && snap.Undecided() == 0 {
				break
			}
			p := snap.Plan(1, i)
			images++
			if err := d.judge(t, start, snap.Image(p), opened); err != nil {
				failed = fmt.Errorf("step %d, %s: %w\n%v", snap.Step(), p.Name, err, snap)
			}
		}
	})
	if _, err := vhdx.Repair(t.Context(), s.File, o); err != nil && failed == nil {
		failed = err
	}
	if n := s.Snapshot().Undecided(); n > 0 && failed == nil {
		failed = fmt.Errorf("done with %d operations that are not durable", n)
	}
	return images, failed
}

// judge: what a cut left shows what it should if it opens, which it must if
// the image did before the repair, and is mended by another repair.
func (d damage) judge(t *testing.T, start, image *vhdxtest.File, opened bool) error {
	if err := announced(start, image); err != nil {
		return err
	}
	im, err := vhdx.Open(image.Clone(), vhdx.OpenOptions{ReadOnly: true})
	if err == nil {
		err = errors.Join(d.check(im), im.Close())
		if err != nil {
			return fmt.Errorf("cut and opened: %w", err)
		}
	} else if opened {
		return fmt.Errorf("it does not open any more: %w", err)
	}
	var r *vhdx.Report
	for range 2 {
		if r, err = vhdx.Repair(t.Context(), image, vhdx.RepairOptions{}); err != nil {
			return fmt.Errorf("cut and repaired: %w", err)
		}
		if r.After != nil {
			r = r.After
		}
	}
	if !r.Clean() {
		return fmt.Errorf("cut, and a repair leaves %v", r.Findings)
	}
	return d.opened(image)
}

// announced: what changed in the file changed after FileWriteGuid (I-GUID-1).
func announced(start, image *vhdxtest.File) error {
	was, err := vhdxtest.Headers(start)
	if err != nil {
		return err
	}
	is, err := vhdxtest.Headers(image)
	if err != nil {
		return err
	}
	if is[0].FileWriteGUID != was[0].FileWriteGUID {
		return nil
	}
	size, err := start.Size()
	now, err2 := image.Size()
	if at := start.Difference(image, headersEnd); at >= 0 || size != now || err != nil || err2 != nil {
		return fmt.Errorf("the file changed (at %#x, from %#x to %#x bytes) and FileWriteGuid did not", at, size, now)
	}
	return nil
}

// Each sync of a repair is needed: without it, a cut shows damage. The others
// on its way are those of the log, which the crash test proves.
func TestRepairNeedsItsBarriers(t *testing.T) {
	skipSlowRace(t)
	for _, name := range append([]string{
		"sync FileWriteGuid before any other change",
		"sync the shortened file before Close returns",
		"sync replayed pages before clearing LogGuid",
	}, vhdx.RepairBarriers()...) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, d := range damages {
				if d.finds == nil || len(d.left) > 0 && !d.dirty && !d.again || d.shows == 0 && d.like == nil {
					continue
				}
				if n, err := d.cut(t, vhdx.RepairOptions{}.Omit(name), 20); err != nil {
					t.Logf("%s noticed after %d images: %.200v", d.name, n, err)
					return
				}
			}
			t.Fatal("left out, and nothing shows it")
		})
	}
}
