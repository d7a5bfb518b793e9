package control

import (
	"context"
	"errors"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// FreezeLimit is the longest that a filesystem is frozen for a snapshot.
const FreezeLimit = 30 * time.Second

// Snapshots is what [Take] needs of the pools. *[pool.Set] has it.
type Snapshots interface {
	Cut(ctx context.Context, snapshot string, l pool.Live) (pool.Snapshot, error)
	Snapshot(ctx context.Context, id string) (pool.Snapshot, error)
}

// Take has a reserved snapshot taken by the holder of its volume, with the
// filesystem frozen unless it is to be like after a crash, or here where nobody has
// the volume open. A holder that is nil cannot be asked: then that is
// [pool.ErrInUse]. It can be repeated. ErrUnreachable, and what [pool.Set.Cut] and
// [Holder.Cut] answer.
func Take(ctx context.Context, s Snapshots, h Holder, snap pool.Snapshot, crash bool) (pool.Snapshot, error) {
	for try := 0; ; try++ {
		done, err := s.Cut(ctx, snap.ID, pool.Live{})
		if !errors.Is(err, pool.ErrInUse) || h == nil {
			return done, err
		}
		_, err = h.Cut(ctx, snap.Volume, snap.ID, CutOptions{Freeze: !crash, Limit: FreezeLimit})
		if errors.Is(err, ErrNotHeld) && try == 0 {
			continue // it has just been closed
		}
		if err != nil {
			return pool.Snapshot{}, err
		}
		return s.Snapshot(ctx, snap.ID)
	}
}
