package pool

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A change is made whole or not at all, keeps what it does not name, is there
// after a restart, and does not make the creation another.
func TestModify(t *testing.T) {
	dir := t.TempDir()
	s, p := openSet(t, dir)
	ctx := t.Context()
	spec := Spec{Name: "v", Size: 8 << 20, Limits: Limits{IOPS: 5}, Params: Params{OnFull: OnFullPause, PauseLimit: 60}}
	v, err := s.CreateVolume(ctx, spec)
	if err != nil || v.Limits != spec.Limits || v.OnFull != OnFullPause {
		t.Fatalf("%+v, %v", v, err)
	}
	ptr := func(n int64) *int64 { return &n }
	fails, bad := OnFullError, OnFull("maybe")
	for _, c := range []Change{
		{IOPS: ptr(-1)}, {IOPS: ptr(7), Bandwidth: ptr(MaxRate + 1)}, {Burst: ptr(MaxBurst + 1)}, {IOPS: ptr(7), OnFull: &bad},
	} {
		_, err := s.Modify(ctx, v.ID, c)
		wantErr(t, "a bad change", err, ErrInvalid)
	}
	if got, err := s.Volume(ctx, v.ID); err != nil || got.Limits != spec.Limits || got.OnFull != OnFullPause {
		t.Fatalf("after bad changes: %+v, %v", got, err)
	}
	for range 2 {
		if _, err := s.Modify(ctx, v.ID, Change{Bandwidth: ptr(1 << 20), OnFull: &fails}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.CreateVolume(ctx, spec); err != nil {
		t.Fatalf("the same creation again: %v", err)
	}
	audit(t, p)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, _ = openSet(t, dir)
	got, err := s.Volume(ctx, v.ID)
	if err != nil || got.OnFull != OnFullError {
		t.Fatalf("%+v, %v", got, err)
	}
	if d := cmp.Diff(Limits{IOPS: 5, Bandwidth: 1 << 20}, got.Limits); d != "" {
		t.Fatal(d)
	}
	if err := s.SetLimits(ctx, v.ID, Limits{}); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Volume(ctx, v.ID); err != nil || got.Limits != (Limits{}) {
		t.Fatalf("%+v, %v", got, err)
	}
	wantErr(t, "of a volume that is not there", s.SetLimits(ctx, v.ID+"0", Limits{}), ErrNotFound)
}
