package driver

import (
	"context"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

type cutOf struct {
	ID   string
	Live pool.Live
}

func (f *fake) ReserveSnapshot(ctx context.Context, spec pool.SnapshotSpec) (pool.Snapshot, error) {
	return f.snapshot, f.did(ctx, spec)
}

func (f *fake) Cut(ctx context.Context, id string, l pool.Live) (pool.Snapshot, error) {
	s := f.snapshot
	s.Taken = true
	return s, f.did(ctx, cutOf{id, l})
}

func (f *fake) Snapshot(ctx context.Context, id string) (pool.Snapshot, error) {
	return f.snapshot, f.did(ctx, id)
}

func (f *fake) Snapshots(ctx context.Context, filter pool.SnapshotFilter, token string, max int) ([]pool.Snapshot, string, error) {
	return f.snapshots, "", f.did(ctx, filter)
}

func (f *fake) DeleteSnapshot(ctx context.Context, id string) error { return f.did(ctx, id) }

func (f *fake) Find(_ context.Context, _, _ string) (pool.Volume, error) {
	return pool.Volume{}, pool.ErrNotFound
}
