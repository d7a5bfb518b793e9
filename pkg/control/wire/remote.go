package wire

import (
	"context"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
)

// remote is the holder on one node.
type remote struct {
	c    *Client
	node string
}

func of(volumeID string) about { return about{Volume: volumeID} }

func (r remote) Freeze(ctx context.Context, volumeID, token string, limit time.Duration) (string, error) {
	var a freezeReply
	err := r.c.call(ctx, r.node, "Freeze", &freezeRequest{about: of(volumeID), Token: token, Limit: limit}, &a)
	if err != nil {
		return "", err
	}
	return a.Consistency, nil
}

func (r remote) Cut(ctx context.Context, volumeID, snapshotID string, o control.CutOptions) (control.CutResult, error) {
	var a cutReply
	q := &cutRequest{about: of(volumeID), Snapshot: snapshotID, Freeze: o.Freeze, Limit: o.Limit, Token: o.Token}
	if err := r.c.call(ctx, r.node, "Cut", q, &a); err != nil {
		return control.CutResult{}, err
	}
	return control.CutResult{Pause: a.Pause, Frozen: a.Frozen, Consistency: a.Consistency}, nil
}

func (r remote) Thaw(ctx context.Context, volumeID, token string) error {
	return r.c.call(ctx, r.node, "Thaw", &thawRequest{about: of(volumeID), Token: token}, &done{})
}

func (r remote) Follow(ctx context.Context, volumeID string) error {
	return r.c.call(ctx, r.node, "Follow", &followRequest{of(volumeID)}, &done{})
}

func (r remote) Report(ctx context.Context, volumeID string) (control.Report, error) {
	var a reportReply
	if err := r.c.call(ctx, r.node, "Report", &reportRequest{of(volumeID)}, &a); err != nil {
		return control.Report{}, err
	}
	var out control.Report
	for _, e := range a.Entries {
		out.Entries = append(out.Entries, control.Entry(e))
	}
	return out, nil
}
