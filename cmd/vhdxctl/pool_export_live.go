package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/google/uuid"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control/wire"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

var (
	errResumeInUse  = errors.New("the volume is in use, and an interrupted copy of it could not go on: it changes")
	errSnapshotLeft = errors.New("the snapshot that was taken for the copy could not be deleted")
)

// cleanUpTime bounds what is done after the copy, also after Ctrl-C.
const cleanUpTime = time.Minute

// export is an export under way.
type export struct {
	app         *app
	access      *poolAccess
	consistency string
}

func (e *export) check() error {
	switch pool.Consistency(e.consistency) {
	case pool.ConsistentFilesystem, pool.ConsistentCrash:
		return nil
	}
	return fmt.Errorf("--consistency %s: there are filesystem and crash", e.consistency)
}

// run copies a snapshot or a volume. A volume that is in use is copied from a
// snapshot that exists as long as this takes.
func (e *export) run(ctx context.Context, id, target string, o convertOptions) error {
	return e.access.do(ctx, func(s *pool.Set) error {
		image, volume, err := imageOf(ctx, s, id)
		if err != nil {
			return err
		}
		if volume != "" {
			inUse, err := e.inUse(ctx, s, volume)
			if err != nil {
				return err
			}
			if inUse {
				return e.live(ctx, s, volume, target, o)
			}
		}
		return e.copy(ctx, image, target, o)
	})
}

// copy makes the file. The parents of a pool's image are in the pool.
func (e *export) copy(ctx context.Context, image, target string, o convertOptions) error {
	a := *e.app
	if a.parents == "" {
		a.parents = e.access.dir
	}
	return a.convert(ctx, image, target, o)
}

// inUse reports whether a volume can only be copied from a snapshot: it is open, or a
// node may open it at any moment, and must not find it in use. Whoever has it open to
// read, such as another export, is in nobody's way.
func (e *export) inUse(ctx context.Context, s *pool.Set, volume string) (bool, error) {
	v, err := s.Volume(ctx, volume)
	if err != nil || len(v.Attachments) > 0 {
		return true, err
	}
	_, held, err := s.Holder(ctx, volume)
	if errors.Is(err, pool.ErrBusy) {
		return false, nil
	}
	return held, err
}

// live copies a volume that is in use.
func (e *export) live(ctx context.Context, s *pool.Set, volume, target string, o convertOptions) (err error) {
	if o.resume {
		return fmt.Errorf("volume %s: %w", volume, errResumeInUse)
	}
	c := conversion{app: e.app, to: target, o: o}
	if err := c.check(); err != nil { // before anything is frozen
		return err
	}
	// What exists for the sake of a copy is in no list, and is collected.
	snap, err := s.ReserveSnapshot(ctx, pool.SnapshotSpec{Name: "export-" + uuid.NewString(), Volume: volume, Passing: true})
	if err != nil {
		return err
	}
	defer func() {
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTime)
		defer cancel()
		if derr := s.DeleteSnapshot(late, snap.ID); derr != nil {
			err = errors.Join(err, fmt.Errorf("%w: %w", errSnapshotLeft, derr))
		}
	}()
	if snap, err = e.take(ctx, s, snap); err != nil {
		return fmt.Errorf("take a snapshot of volume %s: %w", volume, err)
	}
	o.notes = append(o.notes, fmt.Sprintf("volume %s as it was at %s, consistency %s", volume, snap.Created.UTC().Format(time.RFC3339), snap.Consistency))
	return e.copy(ctx, snap.Image, target, o)
}

// take has the snapshot taken as a controller does: by whoever has the volume open.
func (e *export) take(ctx context.Context, s *pool.Set, snap pool.Snapshot) (pool.Snapshot, error) {
	host, _ := os.Hostname() // for people
	id, err := wire.NewIdentity("vhdxctl on " + host)
	if err != nil {
		return snap, err
	}
	client := wire.NewClient(wire.ClientOptions{Identity: id, Nodes: s})
	defer client.Close()
	for _, c := range id.Certificates() {
		defer s.WithdrawController(context.WithoutCancel(ctx), c.SHA256) //nolint:errcheck // it ends by itself
		if err := s.RegisterController(ctx, pool.Controller{Certificate: c, Name: "vhdxctl on " + host, Since: time.Now()}); err != nil {
			return snap, err
		}
	}
	taken, err := control.Take(ctx, s, &control.Router{Find: s, Remote: client}, snap, e.consistency == string(pool.ConsistentCrash))
	if ctx.Err() != nil {
		err = ctx.Err() // what the node says of that is no news
	}
	if err != nil {
		return snap, err // whose id it is deleted by
	}
	return taken, nil
}

// imageOf is the image of a snapshot or of a volume, and the id of the volume in
// the latter case.
func imageOf(ctx context.Context, s *pool.Set, id string) (image, volume string, err error) {
	snap, err := s.Snapshot(ctx, id)
	if err == nil && snap.Taken {
		return snap.Image, "", nil
	}
	if err != nil && !errors.Is(err, pool.ErrNoSnapshot) {
		return "", "", err
	}
	v, err := s.Volume(ctx, id)
	if errors.Is(err, pool.ErrNotFound) {
		err = fmt.Errorf("%.128q is neither a snapshot nor a volume of the pool; `vhdxctl pool snapshots` and `vhdxctl pool list` name them", id)
	}
	return v.Image, v.ID, err
}
