package sanity

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-vhdx/csi-driver-vhdx/test/plugin"
)

// code is the gRPC code of an error of the harness.
func code(err error) codes.Code {
	for err != nil {
		if _, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
			return status.Code(err)
		}
		err = errors.Unwrap(err)
	}
	return codes.OK
}

// TestReadOnly: a target may be read-only beside a writable one, and a volume
// attached read-only cannot be written anywhere.
func TestReadOnly(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs", "btrfs", "block"} {
		t.Run(kind, func(t *testing.T) {
			ctx, dir := t.Context(), home(t)
			p := start(t, dir)
			v, err := p.Create(ctx, "life", 512*mib, kinds[kind], nil)
			must(t, err, v.Up(ctx))
			want := write(t, v, "synced", 7*mib+4096)

			reader := *v
			reader.Target, reader.ReadOnly = v.Target+"-reader", true
			must(t, reader.Publish(ctx))
			expect(t, &reader, "synced", want)
			if kind != "block" { // a device node obeys no mount; the container's runtime keeps writers off
				notWritable(t, &reader)
			}
			must(t, reader.Unpublish(ctx))
			write(t, v, "more", 4096)
			if kind == "block" {
				want = write(t, v, "synced", 7*mib+4096) // over it
			}
			must(t, v.Down(ctx))

			v.AttachReadOnly = true
			must(t, v.Up(ctx))
			expect(t, v, "synced", want)
			notWritable(t, v)
			must(t, v.Down(ctx))
			image, err := plugin.Image(dir)
			must(t, err)
			qemuCheck(t, image)
		})
	}
}

func notWritable(t *testing.T, v *plugin.Volume) {
	t.Helper()
	f, err := os.OpenFile(dataPath(v, "no"), os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		_, err = f.WriteAt([]byte("no"), 0)
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if !errors.Is(err, syscall.EROFS) && !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.EACCES) {
		t.Errorf("%s can be written: %v", v.Target, err)
	}
}

// TestTwoTargets: many pods of a node may write, if the access mode says so.
func TestTwoTargets(t *testing.T) {
	for mode, want := range map[csi.VolumeCapability_AccessMode_Mode]codes.Code{
		csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER:  codes.OK,
		csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER: codes.FailedPrecondition,
	} {
		t.Run(mode.String(), func(t *testing.T) {
			ctx, dir := t.Context(), home(t)
			p := start(t, dir)
			c := plugin.Filesystem("ext4")
			c.AccessMode.Mode = mode
			v, err := p.Create(ctx, "life", 64*mib, c, nil)
			must(t, err, v.Up(ctx))
			second := *v
			second.Target = v.Target + "-2"
			if err := second.Publish(ctx); code(err) != want {
				t.Errorf("a second target: %v, want %v", err, want)
			}
			if err := v.Unstage(ctx); code(err) != codes.FailedPrecondition {
				t.Errorf("unstaged in use: %v", err)
			}
			must(t, second.Unpublish(ctx), v.Down(ctx))
		})
	}
}

// TestNeverFormatsData: what was written to a raw volume is not formatted away.
func TestNeverFormatsData(t *testing.T) {
	ctx, dir := t.Context(), home(t)
	p := start(t, dir)
	v, err := p.Create(ctx, "life", 512*mib, plugin.Raw(), nil)
	must(t, err, v.Up(ctx))
	want := write(t, v, "precious", 7*mib+4096)
	must(t, v.Down(ctx))
	for _, fs := range []string{"ext4", "xfs", "btrfs"} {
		w := *v
		w.Cap = plugin.Filesystem(fs)
		must(t, w.Attach(ctx))
		if err := w.Stage(ctx); code(err) != codes.FailedPrecondition {
			t.Errorf("staged as %s: %v", fs, err)
		}
		settled(t, p)
	}
	must(t, v.Up(ctx))
	expect(t, v, "precious", want)
	must(t, v.Down(ctx))
}

// TestManyVolumes takes several volumes through their lives at once.
func TestManyVolumes(t *testing.T) {
	ctx, dir := t.Context(), home(t)
	p := start(t, dir)
	var wg sync.WaitGroup
	errs := make(chan error, 8)
	for i := range cap(errs) {
		wg.Go(func() { errs <- life(t, p, i) })
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	r, err := p.Controller().ListVolumes(ctx, &csi.ListVolumesRequest{})
	if err != nil || len(r.GetEntries()) != 0 {
		t.Errorf("volumes left: %v, %v", r, err)
	}
}

func life(t *testing.T, p *plugin.Process, i int) error {
	ctx := t.Context()
	c := plugin.Filesystem("ext4")
	if i%2 == 1 {
		c = plugin.Raw()
	}
	v, err := p.Create(ctx, fmt.Sprintf("many-%d", i), 64*mib, c, nil)
	if err != nil {
		return err
	}
	data := fmt.Appendf(nil, "this is volume %d", i)
	for range 3 {
		if err := v.Up(ctx); err != nil {
			return err
		}
		if err := os.WriteFile(dataPath(v, "data"), data, 0o600); err != nil {
			return err
		}
		if _, err := v.Stats(ctx); err != nil {
			return err
		}
		if _, err := p.Controller().ListVolumes(ctx, &csi.ListVolumesRequest{}); err != nil {
			return err
		}
		if err := v.Down(ctx); err != nil {
			return err
		}
	}
	if _, err := os.Lstat(filepath.Dir(v.Target)); err != nil {
		return err
	}
	return v.Delete(ctx)
}
