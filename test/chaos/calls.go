package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/deathpoint"
	"github.com/csi-vhdx/csi-driver-vhdx/test/plugin"
)

// guest is a volume that comes and goes, by calls that are repeated until
// they succeed, as kubelet repeats them. What was written to it and never
// synced is there when it comes again.
type guest struct {
	c    *runner
	fs   string // "": raw
	v    *plugin.Volume
	size int64
	gen  uint32 // of what is in it; 0: nothing has been written
	made int    // volumes so far
}

const (
	guestSize = 1 << 30
	guestFile = 256 << 10
	guestGrow = 64 << 20
)

// guestFor chooses a filesystem that leads to a point.
func (c *runner) guestFor(p deathpoint.Point) *guest {
	switch p {
	case deathpoint.HelperMkfsXFS, deathpoint.HelperXFSGrow, deathpoint.HelperAlive:
		return c.guests[1]
	case deathpoint.HelperMkfsExt4, deathpoint.HelperFsck, deathpoint.HelperResize2fs, deathpoint.NodeChecked:
		return c.guests[0]
	}
	if filesystemPoint(p) {
		return c.guests[c.rng.IntN(2)]
	}
	return c.guests[c.rng.IntN(len(c.guests))]
}

// filesystemPoint reports whether only a volume with a filesystem comes there.
func filesystemPoint(p deathpoint.Point) bool {
	switch p {
	case deathpoint.HelperMount, deathpoint.HelperUmount, deathpoint.HelperStatfs, deathpoint.NodeUnmounted, deathpoint.NodeMounted,
		deathpoint.NodeFormatting, deathpoint.NodeMkfs, deathpoint.NodeFormatted, deathpoint.NodeUsed:
		return true
	}
	return false
}

// cycle lets the volume come, be used, and go.
func (g *guest) cycle(ctx context.Context, anew bool) error {
	if g.v != nil && anew {
		if err := g.remove(ctx); err != nil {
			return err
		}
	}
	if g.v == nil {
		if err := g.create(ctx); err != nil {
			return err
		}
	}
	for _, s := range []struct {
		name string
		call func(context.Context) error
	}{
		{"attach", g.v.Attach},
		{"stage", g.v.Stage},
		{"stage again", g.v.Stage},
		{"publish", g.v.Publish},
		{"verify", g.verify},
		{"write", g.write},
		{"statistics", func(ctx context.Context) error { _, err := g.v.Stats(ctx); return err }},
		{"expand", g.expand},
		{"unpublish", g.v.Unpublish},
		{"unstage", g.v.Unstage},
		{"detach", g.v.Detach},
		{"expand at rest", g.expandAtRest},
	} {
		if err := g.c.insist(ctx, s.call); err != nil {
			return fmt.Errorf("%s: %s: %w", g, s.name, err)
		}
	}
	return nil
}

// insist makes a call until it succeeds, as long as it is refused in a way
// that says: come again.
func (c *runner) insist(ctx context.Context, call func(context.Context) error) error {
	for {
		err := call(ctx)
		switch code(err) {
		case codes.Unavailable, codes.Aborted, codes.DeadlineExceeded:
		default:
			// What is mounted at the staging path may be dead, until it is torn
			// down: the volume was on its way up when the worker died.
			if !errors.Is(err, fs.ErrExist) && !errors.Is(err, syscall.EIO) {
				return err
			}
		}
		select {
		case <-c.p.Done():
			return fmt.Errorf("the plugin has ended: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// code finds a gRPC code below what wraps it; OK: there is none.
func code(err error) codes.Code {
	for ; err != nil; err = errors.Unwrap(err) {
		if s, ok := status.FromError(err); ok {
			return s.Code()
		}
	}
	return codes.OK
}

func (g *guest) create(ctx context.Context) error {
	g.made++
	name := fmt.Sprintf("guest-%s-%d-%d", cmp.Or(g.fs, "raw"), g.c.epoch, g.made)
	g.size, g.gen = guestSize, 0
	return g.c.insist(ctx, func(ctx context.Context) (err error) {
		g.v, err = g.c.p.Create(ctx, name, guestSize, g.capability(), map[string]string{"blockSize": "1Mi"})
		return err
	})
}

func (g *guest) remove(ctx context.Context) error {
	if g.v == nil {
		return nil
	}
	for _, call := range []func(context.Context) error{g.v.Unpublish, g.v.Unstage, g.v.Detach, g.v.Delete} {
		if err := g.c.insist(ctx, call); err != nil {
			return err
		}
	}
	g.v = nil
	return nil
}

// expand grows the volume. A mounted ext4 may have to wait for the next stage.
func (g *guest) expand(ctx context.Context) error {
	err := g.v.Expand(ctx, g.size+guestGrow)
	if code(err) == codes.FailedPrecondition && g.fs == "ext4" && !plugin.GrowsExt4Online() {
		err = nil
	}
	if err == nil {
		g.size += guestGrow
	}
	return err
}

// expandAtRest grows the volume where no node has it: the next stage follows.
func (g *guest) expandAtRest(ctx context.Context) error {
	if g.gen%2 == 0 {
		return nil
	}
	_, err := g.c.p.Controller().ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{
		VolumeId: g.v.ID, VolumeCapability: g.v.Cap, CapacityRange: &csi.CapacityRange{RequiredBytes: g.size + guestGrow}})
	if err == nil {
		g.size += guestGrow
	}
	return err
}

func (g *guest) capability() *csi.VolumeCapability {
	if g.fs == "" {
		return plugin.Raw()
	}
	return plugin.Filesystem(g.fs)
}

func (g *guest) open() (*os.File, error) {
	path := g.v.Target
	if g.fs != "" {
		path = filepath.Join(path, "data")
	}
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
}

func (g *guest) String() string { return "volume that comes and goes (" + cmp.Or(g.fs, "raw") + ")" }

// verify reads what the last cycle wrote and did not sync.
func (g *guest) verify(context.Context) error {
	if g.gen == 0 {
		return nil
	}
	got := make([]byte, guestFile)
	f, err := g.open()
	if err == nil {
		_, err = io.ReadFull(f, got)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		g.c.found.failed(g.String(), err)
		return err
	}
	for at := int64(0); at < guestFile; at += sectorSize {
		if p := got[at : at+sectorSize]; !holds(p, at, g.gen) {
			g.c.found.wrongSector(g.String(), at, g.gen, p)
		}
	}
	return g.c.found.err()
}

func (g *guest) content() []byte {
	p := make([]byte, guestFile)
	fill(p, 0, g.gen)
	return p
}

// write leaves new content in the page cache.
func (g *guest) write(context.Context) error {
	g.gen++
	f, err := g.open()
	if err == nil {
		_, err = f.WriteAt(g.content(), 0)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		g.c.found.failed(g.String(), err)
	}
	return err
}
