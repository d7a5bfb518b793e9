package driver

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

func (s *controller) ControllerGetVolumeHealth(ctx context.Context, r *csi.ControllerGetVolumeHealthRequest) (*csi.ControllerGetVolumeHealthResponse, error) {
	if err := required("volume_id", r.GetVolumeId()); err != nil {
		return nil, err
	}
	l, err := s.health.look(ctx, r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	all := s.health.whole(ctx, l, &sync.Map{})
	return &csi.ControllerGetVolumeHealthResponse{VolumeHealth: volumeHealth(r.GetVolumeId(), all)}, nil
}

const (
	// healthChunk is how many volumes are looked at in one go, healthAsks how many
	// nodes are asked at once.
	healthChunk = 128
	healthAsks  = 16
	// healthBudget is when a page ends, full or not: well or not, all volumes have
	// to be asked about, and callers wait for 15 seconds.
	healthBudget = 5 * time.Second
)

// ControllerListVolumeHealth lists the volumes with which something is wrong. A
// page may be short, or empty, and yet not be the last. A pool that cannot be
// listed is an error: a volume that is left out counts as well.
func (s *controller) ControllerListVolumeHealth(ctx context.Context, r *csi.ControllerListVolumeHealthRequest) (*csi.ControllerListVolumeHealthResponse, error) {
	n := int(r.GetMaxEntries())
	if n < 0 {
		return nil, fmt.Errorf("%w: max_entries is negative", errInvalid)
	}
	if n == 0 || n > maxEntries {
		n = maxEntries
	}
	resp := &csi.ControllerListVolumeHealthResponse{NextToken: r.GetStartingToken()}
	end := time.Now().Add(healthBudget)
	var deaf sync.Map
	for {
		looks, next, err := s.lookAll(ctx, resp.GetNextToken(), min(max(n, healthAsks), healthChunk))
		if err != nil {
			return nil, err
		}
		for i, all := range s.askAll(ctx, looks, &deaf) {
			id := looks[i].Volume.ID
			if len(all) == 0 {
				continue
			}
			if len(resp.Entries) == n { // this one begins the next page
				return resp, nil
			}
			resp.Entries = append(resp.Entries, volumeHealth(id, all))
			if resp.NextToken, err = s.health.Pools.After(id); err != nil {
				return nil, err
			}
		}
		resp.NextToken = next
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("list the health of volumes: %w", err)
		}
		if next == "" || len(resp.Entries) == n || time.Now().After(end) {
			return resp, nil
		}
	}
}

// lookAll is the next chunk of volumes.
func (s *controller) lookAll(ctx context.Context, token string, max int) ([]pool.Look, string, error) {
	type chunk struct {
		looks []pool.Look
		next  string
	}
	for _, f := range s.health.Figures() {
		if f.Err != nil {
			return nil, "", fmt.Errorf("list the health of volumes: %w: %w", pool.ErrAway, f.Err)
		}
	}
	c, err := read(ctx, s.reads, func(ctx context.Context) (c chunk, err error) {
		c.looks, c.next, err = s.health.Pools.LookAll(ctx, token, max)
		return c, err
	})
	return c.looks, c.next, err
}

// askAll is whole for many volumes at once.
func (s *controller) askAll(ctx context.Context, looks []pool.Look, deaf *sync.Map) [][]control.Entry {
	all := make([][]control.Entry, len(looks))
	slots := make(chan struct{}, healthAsks)
	var wg sync.WaitGroup
	for i, l := range looks {
		if l.Err == nil && len(l.Volume.Attachments) == 0 {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			all[i] = s.health.whole(ctx, l, deaf)
		})
	}
	wg.Wait()
	return all
}
