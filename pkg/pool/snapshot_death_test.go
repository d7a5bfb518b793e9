package pool

import (
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// under runs what a process did before it died: with the volume's lock, which
// goes with it.
func (d *disks) under(id string, do func(s *session, r *record)) {
	d.t.Helper()
	v := mustParse(d.t.(*testing.T), id)
	s, err := d.p.lockVolume(d.t.Context(), v.hash)
	if err != nil {
		d.t.Fatal(err)
	}
	defer s.close()
	r, err := d.p.lineage(v)
	if err != nil {
		d.t.Fatal(err)
	}
	do(s, r)
}

// halfDropped is a process that died while it removed an idle image: before or
// after the record without it.
func (d *disks) halfDropped(id string, replaced bool) {
	d.under(id, func(s *session, r *record) {
		image, err := d.p.idle(r)
		if err != nil || image == "" {
			d.t.Fatalf("nothing is idle: %v", err)
		}
		o := d.p.newOperation(opChange, r, 0)
		o.Image, o.Before, o.Drop = image, r.Committed, true
		if err := s.begin(d.t.Context(), o, nil); err != nil {
			d.t.Fatal(err)
		}
		if err := s.removeFrozen(image); err != nil {
			d.t.Fatal(err)
		}
		if replaced {
			r.without(image)
			if err := d.p.replaceRecord(r); err != nil {
				d.t.Fatal(err)
			}
		}
	})
}

// halfDeleted is a process that died in the first phase of a deletion.
func (d *disks) halfDeleted(id string) {
	d.close(id)
	d.under(id, func(s *session, r *record) {
		o, err := d.p.deletion(r)
		if err != nil {
			d.t.Fatal(err)
		}
		if err := s.begin(d.t.Context(), o, func() error { r.Deleting = true; return d.p.replaceRecord(r) }); err != nil {
			d.t.Fatal(err)
		}
	})
}

// What comes after a death does not write the record that it has read before
// the death was dealt with: I-POOL-7.
func TestDeathInDrop(t *testing.T) {
	for _, replaced := range []bool{false, true} {
		d := newDisks(t, 1)
		v := d.create(Source{}, make([]byte, testDisk))
		d.write(v)
		s := d.snapshot(v)
		d.deleteVolume(v)
		d.deleteSnapshot(s)
		d.halfDropped(v, replaced)
		d.tend(v)
		audit(t, d.p)
		if left := imagesLeft(t, d.p); left != 0 {
			t.Fatalf("%d images are left", left)
		}
	}
}

func TestDeathInDropThenCut(t *testing.T) {
	d := newDisks(t, 1)
	v := d.create(Source{}, make([]byte, testDisk))
	var snaps []string
	for range 7 {
		d.write(v)
		snaps = append(snaps, d.snapshot(v))
	}
	for _, s := range snaps[:5] {
		d.deleteSnapshot(s)
	}
	_, top, err := d.p.layerOf(snaps[6])
	if err != nil {
		t.Fatal(err)
	}
	reader, err := d.p.openLayer(top.Image) // so that the old images stay
	if err != nil {
		t.Fatal(err)
	}
	d.tend(v)
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	d.halfDropped(v, false)
	d.snapshot(v)
	d.tend(v)
	d.verify()
	audit(t, d.p)
}

func TestDeathInDelete(t *testing.T) {
	d := newDisks(t, 1)
	v := d.create(Source{}, make([]byte, testDisk))
	d.write(v)
	s := d.snapshot(v)
	c := d.create(Source{Snapshot: s}, d.snap[s])
	d.deleteSnapshot(s)
	d.halfDeleted(v)
	d.deleteVolume(c) // which its layer was kept for
	d.deleteVolume(v)
	audit(t, d.p)
	if left := imagesLeft(t, d.p); left != 0 {
		t.Fatalf("%d images are left", left)
	}
}

// A volume that is staged read-only goes on with its image, whatever is cut.
func TestCutReadOnlyTwice(t *testing.T) {
	d := newDisks(t, 1)
	v := d.create(Source{}, make([]byte, testDisk))
	d.write(v)
	d.close(v)
	im, err := d.s.OpenImage(t.Context(), v, true, vhdx.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	d.open[v] = im
	d.snapshot(v)
	d.snapshot(v)
	d.close(v)
	d.verify()
	d.write(v)
	d.verify()
	audit(t, d.p)
}

// A clone that was put on its own feet lets its source go.
func TestFlattenedCloneLetsGo(t *testing.T) {
	d := newDisks(t, 1)
	v := d.create(Source{}, make([]byte, testDisk))
	var snaps []string
	for range 7 {
		d.write(v)
		snaps = append(snaps, d.snapshot(v))
	}
	c := d.create(Source{Snapshot: snaps[6]}, d.snap[snaps[6]])
	d.close(v)
	for _, s := range snaps {
		d.deleteSnapshot(s)
	}
	for range 4 {
		d.tendAll()
	}
	d.under(v, func(_ *session, r *record) {
		if len(r.Old) > 0 {
			t.Fatalf("the source keeps %d images", len(r.Old))
		}
	})
	d.under(c, func(_ *session, r *record) {
		if r.Origin != nil {
			t.Fatalf("the clone still has the origin %+v", r.Origin)
		}
	})
	d.verify()
	audit(t, d.p)
}

// A snapshot of a deleted volume is restored under that volume's name.
func TestRestoreUnderTheSameName(t *testing.T) {
	d := newDisks(t, 1)
	v, err := d.s.CreateVolume(t.Context(), small("same"))
	if err != nil {
		t.Fatal(err)
	}
	d.vol[v.ID] = make([]byte, testDisk)
	d.write(v.ID)
	s := d.snapshot(v.ID)
	d.deleteVolume(v.ID)
	spec := small("same")
	spec.Source = Source{Snapshot: s}
	again, err := d.s.CreateVolume(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	d.vol[again.ID] = d.snap[s]
	d.verify()
	audit(t, d.p)
}
