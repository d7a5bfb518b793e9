package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev/fuseloop"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/node"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// snapshots measures what snapshots cost a volume in use, at two sizes: for how
// long writes to the device waited, for how long the filesystem was frozen, and
// how long a restore took. There is no peer: the limit is what fsync costs here.
func snapshots(ctx context.Context, out io.Writer, dir string, count int) error {
	fmt.Fprintf(out, "\nSnapshots of an ext4 under random synced 4 KiB writes, %d each\n", count)
	fmt.Fprintf(out, "%-8s %34s %34s %12s\n", "", "device paused, ms (p50, p99, max)", "frozen, ms (p50, p99, max)", "restore, ms")
	for _, size := range []int64{1 << 30, 1 << 40} {
		s, err := newSnapshotted(ctx, filepath.Join(dir, fmt.Sprint("snapshots-", size)), size)
		if err == nil {
			err = errors.Join(s.measure(ctx, count), s.close(context.WithoutCancel(ctx)))
		}
		if err != nil {
			return fmt.Errorf("snapshots of %d bytes: %w", size, err)
		}
		fmt.Fprintf(out, "%-8s %34s %34s %12s\n", fmt.Sprintf("%d GiB", size>>30), spread(s.pauses), spread(s.frozen), ms(quantile(s.restores, 0.5)))
	}
	return nil
}

// snapshotted is a volume that is staged, with its pool and its node.
type snapshotted struct {
	set                      *pool.Set
	m                        *node.Manager
	id, staging              string
	pauses, frozen, restores []time.Duration
}

func newSnapshotted(ctx context.Context, dir string, size int64) (*snapshotted, error) {
	if err := os.MkdirAll(filepath.Join(dir, "pool"), 0o700); err != nil {
		return nil, err
	}
	p, err := pool.Open(pool.Options{Name: "bench", Dir: filepath.Join(dir, "pool"), Overcommit: 1000, Holder: "bench"}) //nolint:contextcheck // what it does is short, or may not be cut short
	if err != nil {
		return nil, err
	}
	s := &snapshotted{staging: filepath.Join(dir, "mnt")}
	if s.set, err = pool.NewSet(p); err != nil {
		return nil, err
	}
	if err := s.set.RegisterNode(ctx, pool.Node{ID: "bench"}); err != nil {
		return nil, err
	}
	v, err := s.set.CreateVolume(ctx, pool.Spec{Name: "v", Size: size})
	if err != nil {
		return nil, err
	}
	s.id = v.ID
	if err := s.set.Attach(ctx, s.id, "bench", false); err != nil {
		return nil, err
	}
	attacher := fuseloop.New(fuseloop.Options{AllowWithoutResend: true})
	if s.m, err = node.New(node.Config{NodeID: "bench", StateDir: filepath.Join(dir, "state"), Volumes: s.set, Attacher: attacher}); err != nil { //nolint:contextcheck // what it does is short, or may not be cut short
		return nil, err
	}
	if _, err := s.m.Recover(ctx); err != nil {
		return nil, err
	}
	return s, s.m.Stage(ctx, node.StageRequest{VolumeID: s.id, StagingPath: s.staging, FSType: "ext4"})
}

func (s *snapshotted) close(ctx context.Context) error {
	return errors.Join(s.m.Unstage(ctx, s.id, s.staging), s.m.Shutdown(ctx), s.set.Close())
}

func (s *snapshotted) measure(ctx context.Context, count int) error {
	stop := make(chan struct{})
	var writers sync.WaitGroup
	failed := make(chan error, 4)
	for i := range cap(failed) {
		writers.Go(func() { failed <- scribble(filepath.Join(s.staging, fmt.Sprint("file", i)), stop) })
	}
	var errs []error
	for i := range count {
		if err := s.cut(ctx, fmt.Sprint("s", i), i%8 == 0); err != nil {
			errs = append(errs, err)
			break
		}
		_, err := s.set.Tend(ctx, s.id, pool.Tender{Follow: s.m.Follow})
		errs = append(errs, err)
	}
	close(stop)
	writers.Wait()
	for range cap(failed) {
		errs = append(errs, <-failed)
	}
	return errors.Join(errs...)
}

func (s *snapshotted) cut(ctx context.Context, name string, restore bool) error {
	snap, err := s.set.ReserveSnapshot(ctx, pool.SnapshotSpec{Name: name, Volume: s.id})
	if err != nil {
		return err
	}
	c, err := s.m.Cut(ctx, s.id, snap.ID, control.CutOptions{Freeze: true, Limit: node.FreezeLimit})
	if err != nil {
		return err
	}
	s.pauses, s.frozen = append(s.pauses, c.Pause), append(s.frozen, c.Frozen)
	if restore {
		began := time.Now()
		v, err := s.set.CreateVolume(ctx, pool.Spec{Name: "of " + name, Source: pool.Source{Snapshot: snap.ID}})
		s.restores = append(s.restores, time.Since(began))
		if err != nil {
			return err
		}
		if err := s.set.DeleteVolume(ctx, v.ID); err != nil {
			return err
		}
	}
	return s.set.DeleteSnapshot(ctx, snap.ID)
}

// scribble writes random blocks of a file, each synced, until stop.
func scribble(path string, stop <-chan struct{}) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|unix.O_DSYNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 4096)
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		if _, err := f.WriteAt(b, rand.Int64N(16<<10)*4096); err != nil {
			return err
		}
	}
}

func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(d))[min(int(q*float64(len(d))), len(d)-1)]
}

func spread(d []time.Duration) string {
	return fmt.Sprintf("%s %s %s", ms(quantile(d, 0.5)), ms(quantile(d, 0.99)), ms(quantile(d, 1)))
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f", float64(d.Microseconds())/1000) }
