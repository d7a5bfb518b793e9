package pool

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

func TestAttach(t *testing.T) {
	s, p := newSet(t)
	ctx := t.Context()
	register(t, s, "n1", "n2")
	v := create(t, s, "v")
	wantErr(t, "unknown node", s.Attach(ctx, v.ID, "fake-node-id", false), ErrNoNode, "fake-node-id")
	for range 2 {
		if err := s.Attach(ctx, v.ID, "n1", false); err != nil {
			t.Fatal(err)
		}
	}
	wantErr(t, "the other mode", s.Attach(ctx, v.ID, "n1", true), ErrIncompatible)
	err := s.Attach(ctx, v.ID, "n2", false)
	wantErr(t, "another node", err, ErrAttachedElsewhere, "n1")
	if ae, ok := errors.AsType[*AttachedError](err); !ok || ae.Node != "n1" {
		t.Fatalf("no AttachedError of n1: %v", err)
	}
	wantErr(t, "deletion while attached", s.DeleteVolume(ctx, v.ID), ErrInUse, "n1")
	if err := s.Detach(ctx, v.ID, "n2"); err != nil {
		t.Fatalf("detach from a node that does not have it: %v", err)
	}
	got, err := s.Volume(ctx, v.ID)
	if err != nil || len(got.Attachments) != 1 || got.Attachments[0].Node != "n1" {
		t.Fatalf("attachments: %+v, %v", got.Attachments, err)
	}
	for _, node := range []string{"n1", ""} {
		im, err := s.OpenImage(ctx, v.ID, false, vhdx.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		wantErr(t, "detach while open", s.Detach(ctx, v.ID, node), ErrInUse, "node n1", fmt.Sprint(os.Getpid()))
		if err := im.Close(); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := s.Detach(ctx, v.ID, node); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Attach(ctx, v.ID, "n2", true); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Detach(ctx, v.ID, ""); err != nil {
		t.Fatal(err)
	}
	audit(t, p)
}

func TestInUse(t *testing.T) {
	s, _ := newSet(t)
	ctx := t.Context()
	v := create(t, s, "v")
	im, err := s.OpenImage(ctx, v.ID, false, vhdx.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, readOnly := range []bool{false, true} {
		_, err = s.OpenImage(ctx, v.ID, readOnly, vhdx.OpenOptions{})
		wantErr(t, "second opener", err, ErrInUse, "node n1")
	}
	_, err = vhdx.OpenPath(v.Image, vhdx.OpenOptions{})
	wantErr(t, "an opener that goes past the pool", err, vhdx.ErrInUse)
	wantErr(t, "deletion", s.DeleteVolume(ctx, v.ID), ErrInUse, "node n1")
	im.Close()

	direct, err := vhdx.OpenPath(v.Image, vhdx.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.OpenImage(ctx, v.ID, false, vhdx.OpenOptions{})
	wantErr(t, "after one that went past the pool", err, ErrInUse, "unknown holder")
	direct.Close()

	var readers []*vhdx.Image
	for range 2 {
		r, err := s.OpenImage(ctx, v.ID, true, vhdx.OpenOptions{})
		if err != nil || !r.ReadOnly() {
			t.Fatalf("reader: %v", err)
		}
		readers = append(readers, r)
	}
	_, err = s.OpenImage(ctx, v.ID, false, vhdx.OpenOptions{})
	wantErr(t, "writer beside readers", err, ErrInUse)
	wantErr(t, "deletion beside readers", s.DeleteVolume(ctx, v.ID), ErrInUse)
	for _, r := range readers {
		r.Close()
	}
	if err := s.DeleteVolume(ctx, v.ID); err != nil {
		t.Fatal(err)
	}
}

func TestUse(t *testing.T) {
	s, _ := newSet(t)
	ctx := t.Context()
	v := create(t, s, "v")
	wantErr(t, "unknown use", s.SetUse(ctx, v.ID, "used"), ErrInvalid)
	for _, step := range []struct {
		do   func() error
		use  Use
		fs   string
		fail error
	}{
		{func() error { return s.SetUse(ctx, v.ID, UseNever) }, UseNever, "", nil},
		{func() error { return s.BeginFormat(ctx, v.ID, "xfs") }, UseFormatting, "xfs", nil},
		{func() error { return s.BeginFormat(ctx, v.ID, "ext4") }, UseFormatting, "ext4", nil},
		{func() error { return s.SetUse(ctx, v.ID, UseNever) }, UseNever, "ext4", nil},
		{func() error { return s.SetUse(ctx, v.ID, UseFormatting) }, UseFormatting, "ext4", nil},
		{func() error { return s.SetUse(ctx, v.ID, UseMounted) }, UseMounted, "ext4", nil},
		{func() error { return s.SetUse(ctx, v.ID, UseMounted) }, UseMounted, "ext4", nil},
		{func() error { return s.SetUse(ctx, v.ID, UseNever) }, UseMounted, "ext4", ErrInvalid},
		{func() error { return s.SetUse(ctx, v.ID, UseFormatting) }, UseMounted, "ext4", ErrInvalid},
		{func() error { return s.BeginFormat(ctx, v.ID, "xfs") }, UseMounted, "ext4", ErrInvalid},
	} {
		if err := step.do(); !errors.Is(err, step.fail) {
			t.Fatalf("to %s: %v", step.use, err)
		}
		got, err := s.Volume(ctx, v.ID)
		if err != nil || got.Use != step.use || got.FSType != step.fs {
			t.Fatalf("use %s, filesystem %s, %v; want %s, %s", got.Use, got.FSType, err, step.use, step.fs)
		}
	}
}

func TestResize(t *testing.T) {
	s, p := newSet(t)
	ctx := t.Context()
	for _, fixed := range []bool{false, true} {
		v, err := s.CreateVolume(ctx, Spec{Name: fmt.Sprint("fixed", fixed), Size: 8 << 20, Params: Params{Fixed: fixed}})
		if err != nil {
			t.Fatal(err)
		}
		for _, size := range []int64{8 << 20, 1, 9<<20 + 100} {
			got, err := s.Resize(ctx, v.ID, size)
			want := roundUp(max(size, 8<<20), 512)
			if err != nil || got.Size != want {
				t.Fatalf("resize to %d: %d, %v", size, got.Size, err)
			}
			im, err := s.OpenImage(ctx, v.ID, true, vhdx.OpenOptions{})
			if err != nil || im.Size() != want {
				t.Fatalf("image: %v", err)
			}
			im.Close()
		}
		for _, size := range []int64{0, -1, 65 << 40} {
			_, err = s.Resize(ctx, v.ID, size)
			wantErr(t, "size", err, ErrOutOfRange)
		}
	}
	audit(t, p)
}

// TestAttachRace: of controllers that attach one volume to different nodes at
// the same time, one succeeds and the others name its node.
func TestAttachRace(t *testing.T) {
	dir := memDir(t)
	s1, p := openSet(t, dir)
	s2, _ := openSet(t, dir)
	const nodes = 8
	for i := range nodes {
		register(t, s1, fmt.Sprint("n", i))
	}
	v := create(t, s1, "v")
	for range 10 {
		errs := make([]error, nodes)
		var wg sync.WaitGroup
		for i := range nodes {
			wg.Go(func() { errs[i] = []*Set{s1, s2}[i%2].Attach(t.Context(), v.ID, fmt.Sprint("n", i), false) })
		}
		wg.Wait()
		got, err := s1.Volume(t.Context(), v.ID)
		if err != nil || len(got.Attachments) != 1 {
			t.Fatalf("%+v, %v", got.Attachments, err)
		}
		for i, err := range errs {
			node := fmt.Sprint("n", i)
			if ae, ok := errors.AsType[*AttachedError](err); (err == nil) != (got.Attachments[0].Node == node) || err != nil && (!ok || ae.Node != got.Attachments[0].Node) {
				t.Fatalf("%s: %v, but %s has it", node, err, got.Attachments[0].Node)
			}
		}
		if err := s2.Detach(t.Context(), v.ID, ""); err != nil {
			t.Fatal(err)
		}
	}
	audit(t, p)
}

// TestNodeFull: a node takes as many volumes as it says, whoever counts.
func TestNodeFull(t *testing.T) {
	s, p := newSet(t)
	ctx := t.Context()
	if err := s.RegisterNode(ctx, Node{ID: "small", MaxVolumes: 2}); err != nil {
		t.Fatal(err)
	}
	ids := make([]string, 4)
	for i := range ids {
		ids[i] = create(t, s, fmt.Sprint("v", i)).ID
	}
	other, _ := openSet(t, p.tree.Name()) // another controller
	attach := func(by *Set, i int) {
		t.Helper()
		if err := by.Attach(ctx, ids[i], "small", false); err != nil {
			t.Fatal(err)
		}
	}
	attach(other, 0)
	attach(s, 1)
	for range 2 {
		wantErr(t, "a third volume", s.Attach(ctx, ids[2], "small", false), ErrNodeFull, "small", "--max-volumes is 2")
		attach(s, 1) // it is there
	}
	wantErr(t, "no volume", s.Attach(ctx, "default_0123456789abcdef0123456789abcdef_01234567", "small", false), ErrNotFound)
	if err := other.Detach(ctx, ids[0], "small"); err != nil {
		t.Fatal(err)
	}
	attach(s, 2)
	if err := s.Detach(ctx, ids[1], ""); err != nil {
		t.Fatal(err)
	}
	attach(s, 3)
	wantErr(t, "a third volume", s.Attach(ctx, ids[0], "small", false), ErrNodeFull)
}
