package driver

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// backup is a chain of increments, as a backup program keeps them: of the first
// snapshot what is allocated, of each other what differs from the one before.
type backup struct {
	t     *testing.T
	set   *pool.Set
	c     csi.SnapshotMetadataClient
	steps []increment
}

type increment struct {
	snapshot string
	size     int64
	ranges   [][2]int64
	data     [][]byte
}

// take adds an increment: the map comes over gRPC, the data from a clone.
func (b *backup) take(snapshot string) {
	t := b.t
	t.Helper()
	step := increment{snapshot: snapshot}
	var err error
	if n := len(b.steps); n == 0 {
		step.ranges, step.size, err = allocatedOf(t, b.c, &csi.GetMetadataAllocatedRequest{SnapshotId: snapshot, MaxResults: 7}, 7)
	} else {
		r := &csi.GetMetadataDeltaRequest{BaseSnapshotId: b.steps[n-1].snapshot, TargetSnapshotId: snapshot, MaxResults: 7}
		step.ranges, step.size, err = deltaOf(t, b.c, r, 7)
	}
	if err != nil {
		t.Fatalf("map of snapshot %s: %v", snapshot, err)
	}
	clone, err := b.set.CreateVolume(t.Context(), pool.Spec{Name: "clone of " + snapshot, Source: pool.Source{Snapshot: snapshot}})
	if err != nil {
		t.Fatal(err)
	}
	im, err := b.set.OpenImage(t.Context(), clone.ID, true, vhdx.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range step.ranges {
		data := make([]byte, r[1])
		if _, err := im.ReadAt(data, r[0]); err != nil {
			t.Fatal(err)
		}
		step.data = append(step.data, data)
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.set.DeleteVolume(t.Context(), clone.ID); err != nil {
		t.Fatal(err)
	}
	b.steps = append(b.steps, step)
}

// restore puts the increments up to one together.
func (b *backup) restore(n int) []byte {
	var disk []byte
	for _, step := range b.steps[:n+1] {
		for int64(len(disk)) < step.size {
			disk = append(disk, make([]byte, step.size-int64(len(disk)))...)
		}
		for i, r := range step.ranges {
			copy(disk[r[0]:], step.data[i])
		}
	}
	return disk
}

// TestIncrementalBackup backs a volume up at one snapshot after the other, deletes
// each once the next increment is there, as backup programs do, and has layers
// merged between. Every state comes back byte for byte, and no increment holds
// much more than was written.
func TestIncrementalBackup(t *testing.T) {
	const disk, block = 8 << 20, 1 << 20
	ctx := t.Context()
	p, err := pool.Open(pool.Options{Name: "p", Dir: t.TempDir(), Overcommit: 100, Holder: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	set, err := pool.NewSet(p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { set.Close() })
	v, err := set.CreateVolume(ctx, pool.Spec{Name: "v", Size: disk, Params: pool.Params{BlockSize: block}})
	if err != nil {
		t.Fatal(err)
	}
	b := &backup{t: t, set: set, c: serveMaps(t, set)}
	r := rand.New(rand.NewPCG(5, 6))
	model, states := make([]byte, disk), [][]byte{}
	for step := range 8 {
		written := writeSome(t, set, v.ID, model, r)
		if step == 4 {
			model = append(model, make([]byte, block)...)
			if _, err := set.Resize(ctx, v.ID, int64(len(model))); err != nil {
				t.Fatal(err)
			}
			written += block
		}
		snap, err := set.ReserveSnapshot(ctx, pool.SnapshotSpec{Name: string(rune('a' + step)), Volume: v.ID})
		if err == nil {
			_, err = set.Cut(ctx, snap.ID, pool.Live{})
		}
		if err != nil {
			t.Fatal(err)
		}
		b.take(snap.ID)
		states = append(states, bytes.Clone(model))
		held := 0
		for _, data := range b.steps[step].data {
			held += len(data)
		}
		if step > 0 && held > written {
			t.Fatalf("increment %d has %d bytes, and %d were written", step, held, written)
		}
		if step > 0 {
			if err := set.DeleteSnapshot(ctx, b.steps[step-1].snapshot); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := set.Tend(ctx, v.ID, pool.Tender{}); err != nil {
			t.Fatal(err)
		}
	}
	for n, want := range states {
		if got := b.restore(n); !bytes.Equal(got, want) {
			t.Errorf("state %d comes back as something else", n)
		}
	}
}

// writeSome writes to a volume that nobody has open, and returns how many bytes
// were touched at most.
func writeSome(t *testing.T, set *pool.Set, id string, model []byte, r *rand.Rand) (touched int) {
	t.Helper()
	im, err := set.OpenImage(t.Context(), id, false, vhdx.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		n := 512 * (1 + r.IntN(200))
		off := r.IntN((len(model)-n)/512) * 512
		touched += n
		if i == 0 { // all of a block loses its space, however little of it had any
			off, n = r.IntN(len(model)>>20)<<20, 1<<20
			touched += n
			clear(model[off : off+n])
			err = im.Discard(int64(off), int64(n))
		} else {
			for j := range model[off : off+n] {
				model[off+j] = byte(r.Uint32())
			}
			_, err = im.WriteAt(model[off:off+n], int64(off))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	return touched
}
