package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// records is a writer that keeps a promise: what it has counted is on the disk.
type records struct {
	path  string
	acked atomic.Int64
	stop  chan struct{}
	done  sync.WaitGroup
	err   error
}

func record(path string) *records {
	w := &records{path: path, stop: make(chan struct{})}
	w.done.Go(func() { w.err = w.run() })
	return w
}

func (w *records) run() error {
	f, err := os.OpenFile(w.path, os.O_CREATE|os.O_RDWR|unix.O_DSYNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	for i := 1; ; i++ {
		select {
		case <-w.stop:
			return nil
		default:
		}
		if _, err := f.WriteAt(fmt.Appendf(nil, "%08d", i), int64(i)*512); err != nil {
			return err
		}
		if _, err := f.WriteAt(fmt.Appendf(nil, "%08d", i), 0); err != nil {
			return err
		}
		w.acked.Store(int64(i))
	}
}

func (w *records) end(t *testing.T) int {
	close(w.stop)
	w.done.Wait()
	if w.err != nil {
		t.Fatal(w.err)
	}
	return int(w.acked.Load())
}

// lastRecord checks that every record up to the last is there.
func lastRecord(t *testing.T, path string) int {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	last, err := strconv.Atoi(string(b[:8]))
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i <= last; i++ {
		if got := string(b[i*512 : i*512+8]); got != fmt.Sprintf("%08d", i) {
			t.Fatalf("%s: record %d of %d is %q", path, i, last, got)
		}
	}
	return last
}

func (r *rig) snapshot(name string, crash bool) pool.Snapshot {
	r.t.Helper()
	snap, err := r.real.set.ReserveSnapshot(r.t.Context(), pool.SnapshotSpec{Name: name, Volume: r.id})
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err = r.m.Cut(r.t.Context(), r.id, snap.ID, control.CutOptions{Freeze: !crash, Limit: FreezeLimit}); err == nil {
		snap, err = r.real.set.Snapshot(r.t.Context(), snap.ID)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return snap
}

// restoreFrom makes a volume of a snapshot and attaches it to this node.
func (r *rig) restoreFrom(snap, name string, size int64) string {
	r.t.Helper()
	v, err := r.real.set.CreateVolume(r.t.Context(), pool.Spec{Name: name, Size: size, Source: pool.Source{Snapshot: snap}})
	if err == nil {
		err = r.real.set.Attach(r.t.Context(), v.ID, "node-1", false)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return v.ID
}

// Snapshots of a mounted filesystem that somebody writes to: each holds every
// record that was acknowledged before it, and can be mounted, larger, beside
// the volume it is of.
func TestCutUnderWriters(t *testing.T) {
	for _, fsType := range []string{"ext4", "xfs", "btrfs"} {
		for _, crash := range []bool{false, true} {
			t.Run(fmt.Sprint(fsType, " crash=", crash), func(t *testing.T) {
				r := newKeptRig(t, pool.Spec{Name: "pvc-1", Size: realSize(fsType)})
				r.start()
				r.mustCall(fsType, "stage", "publish")
				source := r.id
				file := filepath.Join(r.publishTo(source, "a").TargetPath, "records")
				w := record(file)
				type taken struct {
					id           string
					before, last int
				}
				var all []taken
				for i := range 3 {
					time.Sleep(50 * time.Millisecond) // for some records between them
					before := int(w.acked.Load())
					c := r.snapshot(fmt.Sprint("s", i), crash)
					all = append(all, taken{id: c.ID, before: before, last: int(w.acked.Load())})
					want := pool.ConsistentFilesystem
					if crash {
						want = pool.ConsistentCrash
					}
					if c.Consistency != want {
						t.Fatalf("the snapshot is %s, want %s", c.Consistency, want)
					}
				}
				count := w.end(t)
				if got := lastRecord(t, file); got != count {
					t.Fatalf("the volume holds %d records of %d", got, count)
				}
				r.mustCall(fsType, "unpublish") // it stays mounted where it is staged
				for i, s := range all {
					r.id = r.restoreFrom(s.id, fmt.Sprint("clone", i), realSize(fsType)+64*mib)
					r.mustCall(fsType, "stage", "publish")
					got := lastRecord(t, filepath.Join(r.publishTo(r.id, "a").TargetPath, "records"))
					if got < s.before || got > s.last+2 {
						t.Fatalf("snapshot %d holds %d records; %d were acknowledged before it, %d after", i, got, s.before, s.last)
					}
					r.mustCall(fsType, "write")
					st, err := r.m.Stats(t.Context(), r.id, r.publishTo(r.id, "a").TargetPath)
					if err != nil || st.Bytes.Total < realSize(fsType)-16*mib {
						t.Fatalf("%+v, %v", st, err)
					}
					r.mustCall(fsType, "unpublish", "unstage")
				}
				r.id = source
				r.mustCall(fsType, "publish")
				if got := lastRecord(t, file); got != count {
					t.Fatalf("the volume holds %d records of %d", got, count)
				}
				r.mustCall(fsType, "unpublish", "unstage")
				r.wantClean()
			})
		}
	}
}

// A filesystem that somebody else has frozen is not thawed, and no obstacle.
func TestCutFrozenByOthers(t *testing.T) {
	r := newKeptRig(t, pool.Spec{Name: "pvc-1", Size: realSize("xfs")})
	r.start()
	r.mustCall("xfs", "stage", "publish", "write")
	f, err := os.Open(r.publishTo(r.id, "a").TargetPath)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), ioctlFreeze, 0); err != nil {
		t.Fatal(err)
	}
	c := r.snapshot("s", false)
	err = unix.IoctlSetInt(int(f.Fd()), ioctlThaw, 0)
	if err != nil || c.Consistency != pool.ConsistentCrash { // it could have ended at any moment
		t.Fatalf("thaw: %v; %+v", err, c)
	}
	f.Close()
	r.mustCall("xfs", "write", "unpublish", "unstage")
}

// Freezes end by Thaw, by their limit, and with the volume.
func TestFreeze(t *testing.T) {
	for _, fsType := range []string{"ext4", "block"} {
		t.Run(fsType, func(t *testing.T) {
			r := newKeptRig(t, pool.Spec{Name: "pvc-1", Size: realSize(fsType)})
			r.start()
			r.mustCall(fsType, "stage", "publish", "write")
			ctx := t.Context()
			if _, err := r.m.Freeze(ctx, r.id, "mine", time.Minute); err != nil {
				t.Fatal(err)
			}
			if _, err := r.m.Freeze(ctx, r.id, "mine", time.Minute); err != nil {
				t.Fatalf("again: %v", err)
			}
			if _, err := r.m.Freeze(ctx, r.id, "other", time.Minute); !errors.Is(err, ErrPending) {
				t.Fatalf("by another: %v", err)
			}
			written := make(chan error, 1)
			go func() { written <- r.call(r.m, "write", fsType) }()
			select {
			case err := <-written:
				t.Fatalf("a write came through a freeze: %v", err)
			case <-time.After(200 * time.Millisecond):
			}
			r.snapshot("s", false)
			if err := errors.Join(r.m.Thaw(ctx, r.id, "other"), r.m.Thaw(ctx, r.id, "mine"), r.m.Thaw(ctx, r.id, "mine")); err != nil {
				t.Fatal(err)
			}
			if err := <-written; err != nil {
				t.Fatal(err)
			}
			if _, err := r.m.Freeze(ctx, r.id, "short", 50*time.Millisecond); err != nil {
				t.Fatal(err)
			}
			r.mustCall(fsType, "write") // waits for the limit
			if _, err := r.m.Freeze(ctx, r.id, "next", time.Minute); err != nil {
				t.Fatal(err)
			}
			r.mustCall(fsType, "unpublish", "unstage")
			r.wantClean()
		})
	}
}

// The members of a group fail when their freeze has ended; a plain snapshot
// after that freezes again.
func TestFreezeHasEnded(t *testing.T) {
	r := newKeptRig(t, pool.Spec{Name: "pvc-1", Size: realSize("ext4")})
	r.start()
	r.mustCall("ext4", "stage", "publish", "write")
	if _, err := r.m.Freeze(t.Context(), r.id, "group", 50*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	r.mustCall("ext4", "write") // waits for the limit
	snap, err := r.real.set.ReserveSnapshot(t.Context(), pool.SnapshotSpec{Name: "late", Volume: r.id})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.m.Cut(t.Context(), r.id, snap.ID, control.CutOptions{Token: "group"}); !errors.Is(err, control.ErrFrozenNoMore) {
		t.Fatalf("cut with a freeze that has ended: %v", err)
	}
	if c := r.snapshot("s", false); c.Consistency != pool.ConsistentFilesystem {
		t.Fatalf("%+v", c)
	}
	r.mustCall("ext4", "write", "unpublish", "unstage")
	r.wantClean()
}

// A process that was to thaw and is killed leaves nothing frozen.
func TestFreezerKilled(t *testing.T) {
	r := newKeptRig(t, pool.Spec{Name: "pvc-1", Size: realSize("ext4")})
	r.start()
	r.mustCall("ext4", "stage", "publish", "write")
	if _, err := r.m.Freeze(t.Context(), r.id, "mine", time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := r.m.frozenOf(r.id).talk.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := r.m.Thaw(t.Context(), r.id, "mine"); err != nil {
		t.Fatal(err)
	}
	r.mustCall("ext4", "write", "unpublish", "unstage")
	r.wantClean()
}

// What a plugin that died has frozen is thawed by what it left behind.
func TestFreezerOutlivesPlugin(t *testing.T) {
	r := newKeptRig(t, pool.Spec{Name: "pvc-1", Size: realSize("ext4")})
	r.kill(victim{Step: "frozen", FS: "ext4", Calls: []string{"stage", "publish", "write", "cut"}})
	r.wantResumed()
	r.mustCall("ext4", "write", "unpublish", "unstage")
	r.wantClean()
	if _, err := r.real.set.Volume(context.Background(), r.id); err != nil {
		t.Fatal(err)
	}
}
