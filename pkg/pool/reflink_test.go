package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

var reflinkScenario = cloneScenario(CloneReflink)

// sharing is a directory on a filesystem of its own whose files can share blocks.
func sharing(t *testing.T, fsType string) string {
	t.Helper()
	mkfs := map[string][]string{"xfs": {"mkfs.xfs", "-q", "-m", "reflink=1"}, "btrfs": {"mkfs.btrfs", "-q"}}[fsType]
	if os.Getuid() != 0 {
		t.Skip("needs root to mount filesystems")
	}
	if _, err := exec.LookPath(mkfs[0]); err != nil {
		t.Skipf("needs %s", mkfs[0])
	}
	base := memDir(t)
	image, dir := filepath.Join(base, "disk.img"), filepath.Join(base, "mount")
	sparse(t, image, gib)
	run(t, mkfs[0], append(mkfs[1:], image)...)
	(&powerRig{t: t, dir: base + "/none"}).mount(image, dir, fsType)
	return dir
}

// extents says how many bytes of a file are on the disk, and how many of those it
// shares with others.
func extents(t *testing.T, name string) (all, shared uint64) {
	t.Helper()
	const (
		fiemap    = 0xc020660b // FS_IOC_FIEMAP
		sync      = 1          // FIEMAP_FLAG_SYNC
		isShared  = 0x2000     // FIEMAP_EXTENT_SHARED
		atOnce    = 512
		unwritten = 0x800 // FIEMAP_EXTENT_UNWRITTEN: reserved, and nobody's data
	)
	var m struct {
		start, length             uint64
		flags, mapped, count, pad uint32
		extent                    [atOnce]struct {
			logical, physical, length uint64
			_                         [2]uint64
			flags                     uint32
			_                         [3]uint32
		}
	}
	m.length, m.flags, m.count = 1<<62, sync, atOnce
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fiemap, uintptr(unsafe.Pointer(&m))); errno != 0 {
		t.Fatalf("extents of %s: %v", name, errno)
	}
	for _, e := range m.extent[:m.mapped] {
		if e.flags&unwritten != 0 {
			continue
		}
		all += e.length
		if e.flags&isShared != 0 {
			shared += e.length
		}
	}
	return all, shared
}

// TestReflink: a clone of a detached volume shares its blocks, reads the same, and
// is a file of its own: what is written to the one does not show in the other, and
// the source can go at once.
func TestReflink(t *testing.T) {
	for _, fsType := range []string{"xfs", "btrfs"} {
		t.Run(fsType, func(t *testing.T) {
			s, p := openSet(t, sharing(t, fsType))
			d := disksOf(t, s, p, 1)
			source := d.create(Source{}, make([]byte, testDisk))
			for range 60 {
				d.write(source)
			}
			d.close(source)
			clone := d.clone(source, CloneReflink)
			if vol, err := s.Volume(t.Context(), clone); err != nil || vol.Layers != 0 {
				t.Fatalf("the clone stands on %d images, %v", vol.Layers, err)
			} else if all, shared := extents(t, vol.Image); shared < all/2 || shared < testDisk/2 {
				t.Fatalf("the clone shares %d of its %d bytes", shared, all)
			} else {
				t.Logf("the clone shares %d of its %d bytes", shared, all)
			}
			d.verify()
			for range 10 {
				d.write(source)
				d.write(clone)
			}
			d.verify()
			again := d.clone(source, CloneReflink) // now with a layer below
			d.verify()
			d.deleteVolume(source)
			d.tendAll()
			if left := imagesLeft(t, p); left != 2 {
				t.Fatalf("%d images of two clones", left)
			}
			d.verify()
			d.write(clone)
			d.write(again)
			d.verify()
			audit(t, p)
		})
	}
}

// clone makes a volume of another one as the controller does: of a snapshot that
// goes at once.
func (d *disks) clone(of string, mode CloneMode) string {
	ctx := d.t.Context()
	snap, err := d.s.ReserveSnapshot(ctx, SnapshotSpec{Name: d.name("cut"), Volume: of, Passing: true})
	if err == nil {
		snap, err = d.s.Cut(ctx, snap.ID, Live{Image: d.open[of]})
	}
	if err != nil {
		d.t.Fatalf("cut %s: %v", of, err)
	}
	id := d.create(Source{Snapshot: snap.ID, Mode: mode, Of: "volume " + of}, d.vol[of])
	if err := d.s.DeleteSnapshot(ctx, snap.ID); err != nil {
		d.t.Fatal(err)
	}
	return id
}

// TestReflinkCrash: a process that dies at any step of a clone leaves none, or a
// whole one, and no image of nobody.
func TestReflinkCrash(t *testing.T) {
	stride := 1
	if testing.Short() {
		stride = 5
	}
	dir := sharing(t, "xfs")
	steps := 0
	for died := true; died; {
		steps++
		at := 1 + (steps-1)*stride
		died = reflinkCrash(t, filepath.Join(dir, fmt.Sprint(at)), at)
	}
	t.Logf("died at %d steps", steps-1)
}

func reflinkCrash(t *testing.T, dir string, at int) bool {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s, _ := openSet(t, dir)
	id, err := reflinkScenario.prepare(t.Context(), s)
	if err = errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	died := crash(t, dir, reflinkScenario.name, id, at)
	s, p := openSet(t, dir)
	checkRecovered(t, fmt.Sprintf("step %d", at), reflinkScenario, s, p, id)
	v, err := s.Volume(t.Context(), victimID(t.Context(), s, "clone"))
	if err != nil {
		t.Fatal(err)
	}
	if _, shared := extents(t, v.Image); shared == 0 {
		t.Fatalf("step %d: the clone shares nothing", at)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return died
}

// TestReflinkFits is I-POOL-7: blocks larger than those that the clone counts for
// are not shared, since its image could outgrow that.
func TestReflinkFits(t *testing.T) {
	s, p := openSet(t, sharing(t, "xfs"))
	ctx := context.Background()
	spec := Spec{Name: "source", Size: 40 * mib, Params: Params{BlockSize: 32 * mib, LogSize: 16 * mib}}
	v, err := s.CreateVolume(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeText(ctx, s, v.ID, 1); err != nil {
		t.Fatal(err)
	}
	snap, err := take(ctx, s, v.ID, "snap")
	if err != nil {
		t.Fatal(err)
	}
	for name, shares := range map[string]bool{"same": true, "smaller": false} {
		c := Spec{Name: name, Source: Source{Snapshot: snap.ID, Mode: CloneReflink}, Params: spec.Params}
		if !shares {
			c.Params = Params{BlockSize: testBlock}
		}
		made, err := s.CreateVolume(ctx, c)
		if err != nil {
			t.Fatal(err)
		}
		if _, shared := extents(t, made.Image); shared > 0 != shares {
			t.Errorf("%s: it shares %d bytes", name, shared)
		}
		if err := volumeHolds(ctx, s, made.ID, 1); err != nil {
			t.Error(err)
		}
	}
	audit(t, p)
}
