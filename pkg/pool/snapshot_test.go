package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

const (
	testDisk  = 8 << 20
	testBlock = 1 << 20
)

func small(name string) Spec {
	return Spec{Name: name, Size: testDisk, Params: Params{BlockSize: testBlock}}
}

// disks is what every volume and snapshot of a pool must hold.
type disks struct {
	t    testing.TB
	s    *Set
	p    *Pool
	rnd  *rand.Rand
	vol  map[string][]byte      // by id
	open map[string]*vhdx.Image // by volume id
	snap map[string][]byte      // by id
	n    int
}

func newDisks(t testing.TB, seed uint64) *disks {
	s, p := newSet(t)
	return disksOf(t, s, p, seed)
}

func disksOf(t testing.TB, s *Set, p *Pool, seed uint64) *disks {
	d := &disks{t: t, s: s, p: p, rnd: rand.New(rand.NewPCG(seed, 1)), vol: map[string][]byte{}, open: map[string]*vhdx.Image{}, snap: map[string][]byte{}}
	t.Cleanup(func() {
		for _, im := range d.open {
			im.Close()
		}
	})
	return d
}

func (d *disks) name(kind string) string {
	d.n++
	return fmt.Sprintf("%s-%d", kind, d.n)
}

func (d *disks) create(src Source, content []byte) string {
	spec := small(d.name("vol"))
	spec.Source = src
	v, err := d.s.CreateVolume(d.t.Context(), spec)
	if err != nil {
		d.t.Fatalf("create from %+v: %v", src, err)
	}
	d.vol[v.ID] = bytes.Clone(content)
	return v.ID
}

func (d *disks) image(id string) *vhdx.Image {
	if im := d.open[id]; im != nil {
		return im
	}
	im, err := d.s.OpenImage(d.t.Context(), id, false, vhdx.OpenOptions{})
	if err != nil {
		d.t.Fatalf("open %s: %v", id, err)
	}
	d.open[id] = im
	return im
}

func (d *disks) close(id string) {
	if im := d.open[id]; im != nil {
		if err := im.Close(); err != nil {
			d.t.Fatalf("close %s: %v", id, err)
		}
		delete(d.open, id)
	}
}

func (d *disks) write(id string) {
	b := make([]byte, 4096*(1+d.rnd.IntN(64)))
	for i := range b {
		b[i] = byte(d.rnd.Uint32())
	}
	off := d.rnd.IntN((testDisk-len(b))/4096) * 4096
	if _, err := d.image(id).WriteAt(b, int64(off)); err != nil {
		d.t.Fatalf("write %s: %v", id, err)
	}
	copy(d.vol[id][off:], b)
}

func (d *disks) snapshot(id string) string {
	ctx := d.t.Context()
	s, err := d.s.ReserveSnapshot(ctx, SnapshotSpec{Name: d.name("snap"), Volume: id})
	if err != nil {
		d.t.Fatalf("reserve a snapshot of %s: %v", id, err)
	}
	s, err = d.s.Cut(ctx, s.ID, Live{Image: d.open[id]})
	if err != nil {
		d.t.Fatalf("cut %s: %v", id, err)
	}
	if !s.Taken || s.Size != testDisk || s.Volume != id {
		d.t.Fatalf("snapshot is %+v", s)
	}
	d.snap[s.ID] = bytes.Clone(d.vol[id])
	return s.ID
}

func (d *disks) tend(id string) {
	_, err := d.s.Tend(d.t.Context(), id, Tender{Follow: func(ctx context.Context, id string) error {
		return d.s.Switch(ctx, id, d.open[id])
	}})
	if err != nil {
		d.t.Fatalf("tend %s: %v", id, err)
	}
}

func (d *disks) tendAll() {
	var ids []string
	if err := d.s.Untended(d.t.Context(), func(id string) error { ids = append(ids, id); return nil }); err != nil {
		d.t.Fatal(err)
	}
	for _, id := range ids {
		d.tend(id)
	}
}

func (d *disks) deleteVolume(id string) {
	d.close(id)
	if err := d.s.DeleteVolume(d.t.Context(), id); err != nil {
		d.t.Fatalf("delete %s: %v", id, err)
	}
	delete(d.vol, id)
}

func (d *disks) deleteSnapshot(id string) {
	if err := d.s.DeleteSnapshot(d.t.Context(), id); err != nil {
		d.t.Fatalf("delete snapshot %s: %v", id, err)
	}
	delete(d.snap, id)
}

// verify reads every volume, and every snapshot by way of its layer.
func (d *disks) verify() {
	got := make([]byte, testDisk)
	for id, want := range d.vol {
		if _, err := d.image(id).ReadAt(got, 0); err != nil {
			d.t.Fatalf("read %s: %v", id, err)
		}
		if !bytes.Equal(got, want) {
			d.t.Fatalf("volume %s holds something else", id)
		}
	}
	for id, want := range d.snap {
		_, l, err := d.p.layerOf(id)
		if err != nil {
			d.t.Fatalf("snapshot %s: %v", id, err)
		}
		im, err := d.p.openLayer(l.Image)
		if err != nil {
			d.t.Fatalf("open snapshot %s: %v", id, err)
		}
		_, err = im.ReadAt(got, 0)
		if err = errors.Join(err, im.Close()); err != nil {
			d.t.Fatalf("read snapshot %s: %v", id, err)
		}
		if !bytes.Equal(got, want) {
			d.t.Fatalf("snapshot %s holds something else", id)
		}
	}
}

func pick[V any](d *disks, m map[string]V) string {
	ids := slices.Sorted(maps.Keys(m))
	if len(ids) == 0 {
		return ""
	}
	return ids[d.rnd.IntN(len(ids))]
}

func TestSnapshotLife(t *testing.T) {
	d := newDisks(t, 1)
	v := d.create(Source{}, make([]byte, testDisk))
	d.write(v)
	live := d.snapshot(v) // I-POOL-15: of an open volume
	d.write(v)
	d.close(v)
	detached := d.snapshot(v)
	d.write(v)
	c := d.create(Source{Snapshot: live}, d.snap[live])
	d.write(c)
	d.verify()
	audit(t, d.p)
	d.deleteVolume(v) // it retires
	d.verify()
	audit(t, d.p)
	d.deleteSnapshot(detached)
	d.deleteSnapshot(live) // the clone stands on it
	d.tendAll()
	d.verify()
	audit(t, d.p)
	d.deleteVolume(c)
	d.tendAll()
	audit(t, d.p)
	if left := imagesLeft(t, d.p); left != 0 {
		t.Fatalf("%d images are left of nothing", left)
	}
}

// imagesLeft counts the image files of a pool.
func imagesLeft(t testing.TB, p *Pool) (n int) {
	top, err := p.tree.Dir(dirImages)
	if err != nil {
		t.Fatal(err)
	}
	defer top.Close()
	shards, err := top.Names()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range shards {
		d, err := p.tree.Dir(dirImages + "/" + s)
		if err != nil {
			t.Fatal(err)
		}
		names, err := d.Names()
		d.Close()
		if err != nil {
			t.Fatal(err)
		}
		n += len(names)
	}
	return n
}

func TestSnapshotsInAnyOrder(t *testing.T) {
	seeds := uint64(6)
	if testing.Short() {
		seeds = 2
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			d := newDisks(t, seed)
			d.create(Source{}, make([]byte, testDisk))
			for step := range 150 {
				v, s := pick(d, d.vol), pick(d, d.snap)
				switch k := d.rnd.IntN(20); {
				case v == "":
					d.create(Source{}, make([]byte, testDisk))
				case k < 6:
					d.write(v)
				case k < 10 && len(d.snap) < 12:
					d.snapshot(v)
				case k < 14 && s != "":
					d.deleteSnapshot(s)
				case k < 15 && s != "" && len(d.vol) < 5:
					mode := []CloneMode{CloneLink, CloneLink, CloneCopy, CloneReflink}[d.rnd.IntN(4)]
					d.create(Source{Snapshot: s, Mode: mode}, d.snap[s])
				case k < 16 && len(d.vol) > 2:
					d.deleteVolume(v)
				case k < 18:
					d.tend(v)
				default:
					d.close(v)
				}
				if step%25 == 24 {
					d.verify()
				}
			}
			d.verify()
			d.tendAll()
			audit(t, d.p)
			for _, s := range slices.Collect(maps.Keys(d.snap)) {
				d.deleteSnapshot(s)
			}
			for _, v := range slices.Collect(maps.Keys(d.vol)) {
				d.verify()
				d.deleteVolume(v)
			}
			for range 3 {
				d.tendAll()
			}
			audit(t, d.p)
			if left := imagesLeft(t, d.p); left != 0 {
				t.Fatalf("%d images are left of nothing", left)
			}
		})
	}
}

// TestChainStaysShort: snapshots that come and go must not lengthen the chain
// of a volume that is always open, and keep no more than they need.
func TestChainStaysShort(t *testing.T) {
	d := newDisks(t, 7)
	v := d.create(Source{}, make([]byte, testDisk))
	d.image(v)
	var snaps []string
	longest := 0
	for range 60 {
		d.write(v)
		snaps = append(snaps, d.snapshot(v))
		if len(snaps) > 5 {
			d.deleteSnapshot(snaps[0])
			snaps = snaps[1:]
		}
		d.tend(v)
		vol, err := d.s.Volume(t.Context(), v)
		if err != nil {
			t.Fatal(err)
		}
		longest = max(longest, vol.Layers)
	}
	d.verify()
	audit(t, d.p)
	if most := 5 + rebuildAfter + 1; longest > most {
		t.Fatalf("the chain came to %d layers, more than %d", longest, most)
	}
}

// The longest record there can be is read back.
func TestLongestRecord(t *testing.T) {
	_, p := newSet(t)
	r := newRecord(p, small(string(bytes.Repeat([]byte{0xff}, MaxName))))
	id := r.ID
	l := func() layer {
		return layer{
			Image: newRecord(p, small("x")).Image, Snapshot: id, Size: maxSize, Bytes: maxCommitted, Use: UseFormatting,
			FSType: "a filesystem's name of 32 bytes.", Consistency: ConsistentFilesystem, Created: r.Created,
		}
	}
	r.Rebuild = &rebuild{Switching: true, Flat: true}
	for i := range maxLayers {
		r.Layers = append(r.Layers, l())
		r.Rebuild.New = append(r.Rebuild.New, rebuilt{Image: l().Image, To: i, Bytes: maxCommitted, Done: true})
		r.Old = append(r.Old, l(), l())
	}
	r.Committed = maxCommitted
	b, err := r.encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decodeRecord(b, "p", r.id.hash); err != nil || len(b) > maxFile/2 {
		t.Fatalf("%d bytes: %v", len(b), err)
	}
	r.Old = append(r.Old, l())
	if _, err := r.encode(); !errors.Is(err, ErrChainFull) {
		t.Fatalf("one more: %v", err)
	}
}

// A page that ends with a pool goes on with all of the next one.
func TestSnapshotPagesOverPools(t *testing.T) {
	_, a := newSet(t, func(o *Options) { o.Name = "a" })
	_, b := newSet(t, func(o *Options) { o.Name = "b" })
	s, err := NewSet(a, b)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b"} {
		spec := small("v")
		spec.Pool = name
		v, err := s.CreateVolume(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 4 {
			if _, err := take(t.Context(), s, v.ID, fmt.Sprint(name, i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for max := 1; max <= 9; max++ {
		seen := map[string]bool{}
		for token := ""; ; {
			page, next, err := s.Snapshots(t.Context(), SnapshotFilter{}, token, max)
			if err != nil || len(page) > max {
				t.Fatalf("%d in a page of %d: %v", len(page), max, err)
			}
			for _, x := range page {
				seen[x.ID] = true
			}
			if token = next; token == "" {
				break
			}
		}
		if len(seen) != 8 {
			t.Fatalf("pages of %d show %d snapshots of 8", max, len(seen))
		}
	}
}
