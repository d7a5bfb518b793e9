package pool

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/fsx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// imageFile is what the file of an image itself says.
type imageFile struct {
	allocated int64
	info      vhdx.Info
	parent    string // as the file names it; "": none
}

// parentOf notes which image is opened as the first one's parent.
type parentOf struct {
	imagesOf
	parent string
}

func (o *parentOf) OpenParent(from string, at vhdx.ParentPath) (vhdx.File, string, error) {
	f, name, err := o.imagesOf.OpenParent(from, at)
	if err == nil {
		o.parent = cmp.Or(o.parent, imageOf(name))
	}
	return f, name, err
}

func imageOf(file string) string { return strings.TrimSuffix(filepath.Base(file), ".vhdx") }

// imageFiles looks at every image file, without any record.
func imageFiles(t testing.TB, p *Pool) map[string]imageFile {
	t.Helper()
	all := map[string]imageFile{}
	names, err := filepath.Glob(filepath.Join(p.tree.Name(), dirImages, "*", "*.vhdx"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		fi, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		osf, err := vhdx.NewOSFile(f, vhdx.FileOptions{ReadOnly: true, NoLock: true})
		if err != nil {
			t.Fatal(err)
		}
		o := &parentOf{imagesOf: imagesOf{p}}
		im, err := vhdx.Open(osf, vhdx.OpenOptions{ReadOnly: true, Parents: o})
		if err != nil {
			t.Fatalf("open %s: %v", name, err)
		}
		all[imageOf(name)] = imageFile{fsx.Allocated(fi), im.Info(), o.parent}
		if err := im.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// largest is what the file of an image takes once it has every block and, of a
// child, every bitmap.
func (f imageFile) largest() int64 {
	perChunk := (4 << 30) / f.info.BlockSize // with sectors of 512 bytes
	chunks := (f.info.PayloadBlocks + perChunk - 1) / perChunk
	entries := f.info.PayloadBlocks + chunks
	bitmaps := int64(0)
	if f.info.HasParent {
		entries, bitmaps = chunks*(perChunk+1), chunks
	}
	const headerAndMetadata = 2 * mib
	return headerAndMetadata + f.info.LogSize + roundUp(8*entries, mib) + f.info.PayloadBlocks*f.info.BlockSize + bitmaps*mib
}

// recount holds the figures of a pool against its files: I-POOL-7, I-POOL-20.
// bitmaps are the volumes that have been a child once, and count for it.
func (d *disks) recount(bitmaps map[string]bool) {
	t, ctx := d.t, d.t.Context()
	t.Helper()
	files := imageFiles(t, d.p)
	owner, heads := map[string]string{}, map[string]bool{}
	var committed, allocated, pinned int64
	err := d.p.eachLineage(ctx, func(_ string, r *record, err error) error {
		if err != nil {
			return err
		}
		for _, l := range r.layers() {
			owner[l.Image] = r.ID
			if l.Bytes != files[l.Image].allocated {
				t.Errorf("I-POOL-20: the record counts %d for a frozen image, whose file takes %d", l.Bytes, files[l.Image].allocated)
			}
		}
		if r.Image == "" {
			return nil
		}
		owner[r.Image], heads[r.Image] = r.ID, true
		head := files[r.Image]
		share := footprint(head.info.VirtualSize, r.Params)
		if bitmaps[r.ID] {
			share += bitmapBytes(head.info.VirtualSize)
		}
		if head.largest() > share || head.allocated > share {
			t.Errorf("I-POOL-7: an image that takes %d and may come to %d counts %d", head.allocated, head.largest(), share)
		}
		committed += share
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	pins := d.pinnedFiles(files, owner)
	for image, f := range files {
		allocated += f.allocated
		if !heads[image] {
			committed += f.allocated
		}
		if pins[image] {
			pinned += f.allocated
		}
	}
	got := d.figures()
	if got.Committed != committed || got.Census.Allocated != allocated || got.Census.Pinned != pinned || got.Census.Volumes != int64(len(d.vol)) {
		t.Errorf("I-POOL-20: the pool says %d committed, %d allocated, %d pinned, %d volumes; the files say %d, %d, %d, %d",
			got.Committed, got.Census.Allocated, got.Census.Pinned, got.Census.Volumes, committed, allocated, pinned, len(d.vol))
	}
}

// pinnedFiles are the images that a snapshot is, or that lie below one, or below
// an image of another volume.
func (d *disks) pinnedFiles(files map[string]imageFile, owner map[string]string) map[string]bool {
	pins := map[string]bool{}
	pin := func(image string) {
		for ; image != ""; image = files[image].parent {
			pins[image] = true
		}
	}
	snaps, _, err := d.s.Snapshots(d.t.Context(), SnapshotFilter{}, "", 0)
	if err != nil || len(snaps) != len(d.snap) {
		d.t.Fatalf("%d snapshots of %d, %v", len(snaps), len(d.snap), err)
	}
	for _, s := range snaps {
		image := imageOf(s.Image)
		if s.Bytes != files[image].allocated {
			d.t.Errorf("I-POOL-20: snapshot %s says %d bytes, its file takes %d", s.ID, s.Bytes, files[image].allocated)
		}
		pin(image)
	}
	for image, f := range files {
		if owner[f.parent] != owner[image] {
			pin(f.parent)
		}
	}
	return pins
}

// figures are what the metrics are made of.
func (d *disks) figures() (f Figures) {
	(&Watch{o: WatchOptions{Volumes: true}, set: d.s}).look(d.t.Context(), d.p.name)(&f)
	var err error
	if f.Census, err = d.p.census(d.t.Context()); err != nil || f.Err != nil {
		d.t.Fatal(err, f.Err)
	}
	return f
}

// TestRecount: whatever has happened, what the pool says of its bytes is what its
// files say.
func TestRecount(t *testing.T) {
	steps := 120
	if testing.Short() {
		steps = 50
	}
	for _, where := range []string{"memory", "xfs"} {
		for seed := range uint64(3) {
			t.Run(fmt.Sprint(where, seed), func(t *testing.T) {
				dir := ""
				if where == "memory" {
					dir = memDir(t)
				} else {
					dir = sharing(t, where)
				}
				s, p := openSet(t, dir)
				d := disksOf(t, s, p, 100+seed)
				d.live(steps)
			})
		}
	}
}

// live does this and that to volumes and snapshots, and recounts now and then.
func (d *disks) live(steps int) {
	bitmaps := map[string]bool{}
	for step := range steps {
		v, s := pick(d, d.vol), pick(d, d.snap)
		switch k := d.rnd.IntN(20); {
		case v == "":
			d.create(Source{}, make([]byte, testDisk))
		case k < 7:
			d.write(v)
		case k < 10 && len(d.snap) < 10:
			d.snapshot(v)
			bitmaps[v] = true
		case k < 13 && s != "":
			d.deleteSnapshot(s)
		case k < 15 && s != "" && len(d.vol) < 6:
			mode := []CloneMode{CloneLink, CloneCopy, CloneReflink}[d.rnd.IntN(3)]
			bitmaps[d.create(Source{Snapshot: s, Mode: mode}, d.snap[s])] = true
		case k < 16 && len(d.vol) > 2:
			d.deleteVolume(v)
		case k < 18:
			d.tend(v)
		case k < 19:
			d.close(v)
		default:
			d.create(Source{}, make([]byte, testDisk))
		}
		if step%10 == 9 {
			for _, im := range d.open {
				if err := im.Flush(); err != nil {
					d.t.Fatal(err)
				}
			}
			d.recount(bitmaps)
			if d.t.Failed() {
				d.t.Fatalf("at step %d", step)
			}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(d.open)) {
		d.close(id)
	}
	for range 3 {
		d.tendAll()
	}
	d.recount(bitmaps)
	d.verify()
	audit(d.t, d.p)
}
