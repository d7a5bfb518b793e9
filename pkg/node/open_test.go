package node

import (
	"fmt"
	"testing"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool/lease"
)

func TestAttachment(t *testing.T) {
	r := newRig(t)
	r.create("vol", sizes["ext4"], pool.Params{})
	r.start()
	q := r.stage("vol", "ext4")
	set := func(a ...pool.Attachment) {
		if err := r.vols.set("vol", "", func(v *pool.Volume) { v.Attachments = a }); err != nil {
			t.Fatal(err)
		}
	}
	set()
	wantErr(t, r.m.Stage(t.Context(), q), ErrNotAttached)
	set(pool.Attachment{Node: "other"})
	wantErr(t, r.m.Stage(t.Context(), q), ErrNotAttached)
	set(pool.Attachment{Node: "node-1", ReadOnly: true})
	wantErr(t, r.m.Stage(t.Context(), q), ErrIncompatible)
	q.ReadOnly = true
	wantErr(t, r.m.Stage(t.Context(), q), ErrNoFilesystem) // blank
	r.nothingLeft()
}

// The lock of a dead process of this node lives until its I/O has ended.
func TestImageInUse(t *testing.T) {
	r := newRig(t)
	r.create("vol", sizes["ext4"], pool.Params{})
	r.start()
	q := r.stage("vol", "ext4")
	held := func(node string) error {
		return fmt.Errorf("open: %w: %w", pool.ErrInUse, &lease.HeldError{Holder: lease.Holder{Node: node}})
	}
	r.m.patience = time.Hour
	r.vols.failing("open", held("node-2"))
	err := r.m.Stage(t.Context(), q)
	wantErr(t, err, pool.ErrInUse) // at once: another node has it
	r.m.patience = 0
	r.vols.failing("open", held("node-1"))
	wantErr(t, r.m.Stage(t.Context(), q), ErrPending)
	r.nothingLeft()
	r.m.patience = time.Hour
	time.AfterFunc(200*time.Millisecond, func() { r.vols.failing("open", nil) })
	r.mustStage(q)
}
