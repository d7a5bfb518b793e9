package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// The scenarios of snapshots: what is interrupted leaves every volume and every
// snapshot that was there with what it held.
var snapshotScenarios = []scenario{
	{
		name: "cut", prepare: prepareWritten(0),
		run: func(ctx context.Context, s *Set, id string) error {
			_, err := take(ctx, s, id, "snap")
			return err
		},
		interrupted: holds(1),
		done:        allOf(holds(1), snapshotHolds("snap", 1), depthIs(1)),
	},
	{
		name: "cut again", prepare: prepareWritten(2),
		run: func(ctx context.Context, s *Set, id string) error {
			_, err := take(ctx, s, id, "snap")
			return err
		},
		interrupted: allOf(holds(3), snapshotHolds("s1", 1), snapshotHolds("s2", 2)),
		done:        allOf(holds(3), snapshotHolds("s1", 1), snapshotHolds("s2", 2), snapshotHolds("snap", 3)),
	},
	{
		name: "delete snapshot", prepare: prepareWritten(2),
		run:         func(ctx context.Context, s *Set, id string) error { return untake(ctx, s, "s1") },
		interrupted: allOf(holds(3), snapshotHolds("s2", 2)),
		done:        allOf(holds(3), snapshotHolds("s2", 2)),
	},
	cloneScenario(CloneLink), cloneScenario(CloneCopy),
	{
		name: "retire", prepare: prepareWritten(2),
		run:         func(ctx context.Context, s *Set, id string) error { return s.DeleteVolume(ctx, id) },
		interrupted: allOf(snapshotHolds("s1", 1), snapshotHolds("s2", 2)),
		done:        allOf(snapshotHolds("s1", 1), snapshotHolds("s2", 2), expectVolumes(0)),
	},
	{
		name: "free the last of a deleted volume",
		prepare: func(ctx context.Context, s *Set) (string, error) {
			id, err := prepareWritten(2)(ctx, s)
			return id, errors.Join(err, s.DeleteVolume(ctx, id), untake(ctx, s, "s1"))
		},
		run: func(ctx context.Context, s *Set, id string) error {
			if err := untake(ctx, s, "s2"); err != nil {
				return err
			}
			_, err := s.Tend(ctx, id, Tender{})
			if errors.Is(err, ErrNotFound) {
				err = nil
			}
			return err
		},
		interrupted: anything,
		done:        nothingLeft,
	},
	{
		name: "rebuild",
		prepare: func(ctx context.Context, s *Set) (string, error) {
			id, err := prepareWritten(6)(ctx, s)
			for _, dead := range []string{"s1", "s2", "s4", "s6"} {
				err = errors.Join(err, untake(ctx, s, dead))
			}
			return id, err
		},
		run:         tendOnce,
		interrupted: allOf(holds(7), snapshotHolds("s3", 3), snapshotHolds("s5", 5)),
		done:        allOf(holds(7), snapshotHolds("s3", 3), snapshotHolds("s5", 5)),
	},
	{
		name: "rebuild all",
		prepare: func(ctx context.Context, s *Set) (string, error) {
			id, err := prepareWritten(3)(ctx, s)
			for _, dead := range []string{"s1", "s2", "s3"} {
				err = errors.Join(err, untake(ctx, s, dead))
			}
			return id, err
		},
		run:         tendOnce,
		interrupted: holds(4),
		done:        allOf(holds(4), depthIs(1)),
	},
}

func init() { scenarios = append(scenarios, long(snapshotScenarios)...) }

func long(all []scenario) []scenario {
	for i := range all {
		all[i].long = true
	}
	return all
}

func tendOnce(ctx context.Context, s *Set, id string) error {
	_, err := s.Tend(ctx, id, Tender{})
	return err
}

func cloneScenario(mode CloneMode) scenario {
	create := func(ctx context.Context, s *Set) (Volume, error) {
		snap, err := s.ReserveSnapshot(ctx, SnapshotSpec{Name: "s1", Volume: victimID(ctx, s, "victim")})
		if err != nil {
			return Volume{}, err
		}
		return s.CreateVolume(ctx, Spec{Name: "clone", Size: testDisk, Params: Params{BlockSize: testBlock}, Source: Source{Snapshot: snap.ID, Mode: mode}})
	}
	return scenario{
		name: "clone " + string(mode), prepare: prepareWritten(1),
		run: func(ctx context.Context, s *Set, _ string) error {
			_, err := create(ctx, s)
			return err
		},
		interrupted: allOf(holds(2), snapshotHolds("s1", 1)),
		done: allOf(holds(2), snapshotHolds("s1", 1), expectVolumes(2), func(ctx context.Context, s *Set, _ string) error {
			return volumeHolds(ctx, s, victimID(ctx, s, "clone"), 1)
		}),
	}
}

// prepareWritten makes a volume with n snapshots s1, s2, ...: before each, and
// at the end, what is in it changes.
func prepareWritten(n int) func(context.Context, *Set) (string, error) {
	return func(ctx context.Context, s *Set) (string, error) {
		v, err := s.CreateVolume(ctx, small("victim"))
		for i := 1; err == nil && i <= n+1; i++ {
			if err = writeText(ctx, s, v.ID, i); err == nil && i <= n {
				_, err = take(ctx, s, v.ID, fmt.Sprintf("s%d", i))
			}
		}
		return v.ID, err
	}
}

func take(ctx context.Context, s *Set, id, name string) (Snapshot, error) {
	snap, err := s.ReserveSnapshot(ctx, SnapshotSpec{Name: name, Volume: id})
	if err != nil || snap.Taken {
		return snap, err
	}
	return s.Cut(ctx, snap.ID, Live{})
}

func untake(ctx context.Context, s *Set, name string) error {
	r, err := s.Pools()[0].readSnapshot(dirSnapshots, hashOf(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.DeleteSnapshot(ctx, r.ID)
}

// text is what the disk holds for the nth time: at one place that is the same
// every time, and at one of its own.
func text(n int) string { return strings.Repeat(fmt.Sprintf("version %06d..", n), 256)[:4096] }

func writeText(ctx context.Context, s *Set, id string, n int) error {
	im, err := s.OpenImage(ctx, id, false, vhdx.OpenOptions{})
	if err != nil {
		return err
	}
	_, err = im.WriteAt([]byte(text(n)), 0)
	if err == nil {
		_, err = im.WriteAt([]byte(text(n)), int64(n)*512<<10)
	}
	return errors.Join(err, im.Close())
}

func checkText(im io.ReaderAt, n int) error {
	got := make([]byte, 4096)
	for i, off := range append([]int64{0}, offsets(n)...) {
		want := text(n)
		if i > 0 {
			want = text(i)
		}
		if _, err := im.ReadAt(got, off); err != nil {
			return err
		}
		if string(got) != want {
			return fmt.Errorf("at %#x: %.16q, want %.16q", off, got, want)
		}
	}
	return nil
}

func offsets(n int) (all []int64) {
	for i := 1; i <= n; i++ {
		all = append(all, int64(i)*512<<10)
	}
	return all
}

func volumeHolds(ctx context.Context, s *Set, id string, n int) error {
	im, err := s.OpenImage(ctx, id, true, vhdx.OpenOptions{})
	if err != nil {
		return err
	}
	return errors.Join(checkText(im, n), im.Close())
}

func holds(n int) func(context.Context, *Set, string) error {
	return func(ctx context.Context, s *Set, _ string) error {
		return volumeHolds(ctx, s, victimID(ctx, s, "victim"), n)
	}
}

// victimID is the id of the volume of a name.
func victimID(ctx context.Context, s *Set, name string) string {
	vols, _, err := s.List(ctx, "", 0)
	if err != nil {
		return err.Error()
	}
	for _, v := range vols {
		if v.Name == name {
			return v.ID
		}
	}
	return "there is no volume " + name
}

func snapshotHolds(name string, n int) func(context.Context, *Set, string) error {
	return func(_ context.Context, s *Set, _ string) error {
		p := s.Pools()[0]
		r, err := p.readSnapshot(dirSnapshots, hashOf(name))
		if err != nil {
			return fmt.Errorf("snapshot %s: %w", name, err)
		}
		id, err := parseID(r.Volume)
		if err != nil {
			return err
		}
		v, err := p.readRetired(id)
		if errors.Is(err, fs.ErrNotExist) {
			v, err = p.readRecord(id.hash)
		}
		if err != nil {
			return fmt.Errorf("snapshot %s: %w", name, err)
		}
		l, ok := v.snapshot(r.ID)
		if !ok {
			return fmt.Errorf("snapshot %s is no layer", name)
		}
		im, err := p.openLayer(l.Image)
		if err != nil {
			return fmt.Errorf("snapshot %s: %w", name, err)
		}
		return errors.Join(checkText(im, n), im.Close())
	}
}

func depthIs(n int) func(context.Context, *Set, string) error {
	return expectVolume(func(v Volume) bool { return v.Layers == n })
}

func nothingLeft(ctx context.Context, s *Set, _ string) error {
	var left []string
	err := s.Untended(ctx, func(id string) error { left = append(left, id); return nil })
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("left: %v", left)
	}
	return err
}

func allOf(checks ...func(context.Context, *Set, string) error) func(context.Context, *Set, string) error {
	return func(ctx context.Context, s *Set, id string) error {
		for _, c := range checks {
			if err := c(ctx, s, id); err != nil {
				return err
			}
		}
		return nil
	}
}
