package node

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/helper"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

func (r *rig) resize(id string, size int64) {
	r.t.Helper()
	if err := r.vols.set(id, "", func(v *pool.Volume) { v.Size = size }); err != nil {
		r.t.Fatal(err)
	}
}

func TestExpand(t *testing.T) {
	for _, fsType := range []string{"xfs", "btrfs"} {
		t.Run(fsType, func(t *testing.T) {
			r := newRig(t)
			s := r.staged(fsType)
			p := r.publishTo("vol", "a")
			p.ReadOnly = true
			r.mustPublish(p)
			want := sizes[fsType]
			for _, path := range []string{s.StagingPath, p.TargetPath, p.TargetPath} {
				if path == p.TargetPath {
					want = max(want, gib)
				} else {
					want = 600*mib + 4096 // kept exactly
				}
				r.resize("vol", want)
				got, err := r.m.Expand(t.Context(), "vol", path)
				if err != nil || got != want {
					t.Fatalf("got %d, %v, want %d", got, err, want)
				}
				st, err := r.m.Stats(t.Context(), "vol", path)
				if err != nil || st.Bytes.Total < want*8/10 {
					t.Fatalf("filesystem has %d of %d bytes, %v", st.Bytes.Total, want, err)
				}
			}
		})
	}
}

// Without CAP_SYS_RESOURCE a mounted ext4 cannot grow; the next stage does it.
func TestExpandExt4(t *testing.T) {
	r := newRig(t)
	s := r.staged("ext4")
	r.resize("vol", 256*mib)
	got, err := r.m.Expand(t.Context(), "vol", s.StagingPath)
	if got != 256*mib {
		t.Fatalf("device has %d bytes, %v", got, err)
	}
	if err != nil {
		wantErr(t, err, ErrOfflineOnly)
		if !strings.Contains(err.Error(), "CAP_SYS_RESOURCE") {
			t.Fatal(err)
		}
		r.mustUnstage(s)
		r.mustStage(s)
		// What kubelet repeats then succeeds.
		if got, err := r.m.Expand(t.Context(), "vol", s.StagingPath); err != nil || got != 256*mib {
			t.Fatal(got, err)
		}
	}
	st, err := r.m.Stats(t.Context(), "vol", s.StagingPath)
	if err != nil || st.Bytes.Total < 220*mib {
		t.Fatalf("%+v, %v", st, err)
	}
}

func TestExpandBlockAndUnknown(t *testing.T) {
	r := newRig(t)
	r.create("vol", 16*mib, pool.Params{})
	r.create("ro", 16*mib, pool.Params{})
	r.start()
	s := r.stage("vol", "")
	s.Block = true
	ro := r.stage("ro", "")
	ro.Block, ro.ReadOnly = true, true
	r.mustStage(s)
	r.mustStage(ro)
	r.resize("vol", 48*mib+512)
	if got, err := r.m.Expand(t.Context(), "vol", s.StagingPath); err != nil || got != 48*mib+512 {
		t.Fatal(got, err)
	}
	st, err := r.m.Stats(t.Context(), "vol", s.StagingPath)
	if err != nil || !st.Block || st.Bytes.Total != 48*mib+512 {
		t.Fatalf("%+v, %v", st, err)
	}
	for id, path := range map[string]string{"unknown": "some/path", "vol": "some/path"} {
		if _, err := r.m.Expand(t.Context(), id, path); !errors.Is(err, ErrNotFound) {
			t.Error(id, err)
		}
		if _, err := r.m.Stats(t.Context(), id, path); !errors.Is(err, ErrNotFound) {
			t.Error(id, err)
		}
	}
	_, err = r.m.Expand(t.Context(), "ro", ro.StagingPath)
	wantErr(t, err, ErrIncompatible)
	cause := errors.New("made by the test")
	r.vols.failing("Volume", cause)
	_, err = r.m.Expand(t.Context(), "vol", s.StagingPath)
	wantErr(t, err, cause)
	// Stats never asks the share.
	if _, err := r.m.Stats(t.Context(), "vol", s.StagingPath); err != nil {
		t.Fatal(err)
	}
}

func TestStats(t *testing.T) {
	r := newRig(t)
	s := r.staged("ext4")
	p := r.publishTo("vol", "a")
	r.mustPublish(p)
	st, err := r.m.Stats(t.Context(), "vol", p.TargetPath)
	if err != nil {
		t.Fatal(err)
	}
	if st.Block || st.Bytes.Total < 40*mib || st.Bytes.Used <= 0 || st.Bytes.Available <= 0 || st.Inodes.Total == 0 || st.Inodes.Used < 11 {
		t.Fatalf("%+v", st)
	}
	again, err := r.m.Stats(t.Context(), "vol", s.StagingPath)
	if err != nil || again != st {
		t.Fatalf("not from the cache: %+v, %v", again, err)
	}
	r.mustUnpublish(p)
	_, err = r.m.Stats(t.Context(), "vol", p.TargetPath)
	wantErr(t, err, ErrNotFound)
	r.mustUnstage(s)
	_, err = r.m.Stats(t.Context(), "vol", s.StagingPath)
	wantErr(t, err, ErrNotFound)
}

// I-NODE-10: a statfs that does not come back is asked once, however many wait.
func TestStatsNeverPileUp(t *testing.T) {
	var c statsCell
	gone := make(chan struct{})
	var asked atomic.Int32
	stuck := func(context.Context) ([]byte, error) {
		asked.Add(1)
		return nil, named(&helper.StuckError{Name: "x", Gone: gone, Cause: helper.ErrDeadline})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := c.get(ctx, time.Hour, stuck); err == nil {
				t.Error("an answer from nobody")
			}
		})
	}
	wg.Wait()
	if n := asked.Load(); n != 1 {
		t.Fatalf("%d helpers", n)
	}
	close(gone)
	for range 2 { // the first may still join the one that has ended
		got, err := c.get(t.Context(), time.Hour, func(context.Context) ([]byte, error) { return []byte(`{"Block":true}`), nil })
		if err == nil && got.Block {
			return
		}
	}
	t.Fatal("the end of the stuck helper is not noticed")
}

// Nothing acknowledged is lost by a graceful stop, and what is not in use is closed.
func TestShutdown(t *testing.T) {
	r := newRig(t)
	r.staged("ext4")
	p := r.publishTo("vol", "a")
	r.mustPublish(p)
	r.create("idle", sizes["ext4"], pool.Params{})
	r.create("raw", 16*mib, pool.Params{})
	r.mustStage(r.stage("idle", "ext4"))
	raw := r.stage("raw", "")
	raw.Block = true
	r.mustStage(raw)
	writeFile(t, filepath.Join(p.TargetPath, "file"), "content") // in the page cache only
	m := r.m
	if err := m.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	medium := r.cut("vol") // the power goes
	if n := r.loops(); n != 1 {
		t.Fatalf("%d devices, want that of the volume in use", n)
	}
	if _, err := m.Stats(t.Context(), "idle", r.stage("idle", "").StagingPath); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	wantErr(t, m.Stage(t.Context(), r.stage("idle", "ext4")), ErrPending)
	r.stop()
	r.start() // the state directory is free
	r.restore("vol", medium)
	r.mustStage(r.stage("vol", "ext4"))
	wantFile(t, filepath.Join(p.StagingPath, "file"), "content")
}
