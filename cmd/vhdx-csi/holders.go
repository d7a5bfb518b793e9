package main

import (
	"context"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/node"
)

// localHolder asks the node manager of this very process.
type localHolder struct{ m *node.Manager }

func (h localHolder) Cut(ctx context.Context, volume, snapshot string, crash bool) error {
	_, err := h.m.Cut(ctx, volume, snapshot, crash)
	return err
}

func (h localHolder) Freeze(ctx context.Context, volume, token string, limit time.Duration) error {
	return h.m.Freeze(ctx, volume, token, limit)
}

func (h localHolder) Thaw(ctx context.Context, volume, token string) error {
	return h.m.Thaw(ctx, volume, token)
}

func (h localHolder) Follow(ctx context.Context, volume string) error { return h.m.Follow(ctx, volume) }
