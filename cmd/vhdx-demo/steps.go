package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-vhdx/csi-driver-vhdx/test/plugin"
)

const (
	firstSize = 2 * gib
	grownSize = 3*gib + 4096 // no multiple of the block size
)

func (d *demo) start(ctx context.Context) (string, error) {
	p, err := plugin.Start(ctx, plugin.Options{Binary: d.binary, Dir: d.dir})
	if err != nil {
		return "", err
	}
	d.p = p
	d.show("process %d serves CSI on %s", p.PID(), plugin.Endpoint(d.dir))
	return "", nil
}

func (d *demo) create(ctx context.Context) (string, error) {
	v, err := d.p.Create(ctx, "demo", firstSize, plugin.Filesystem("ext4"), map[string]string{"blockSize": "1Mi"})
	if err != nil {
		return "", err
	}
	d.v = v
	if d.image, err = plugin.Image(d.dir); err != nil {
		return "", err
	}
	text, err := sizes(d.image)
	if err != nil {
		return "", err
	}
	d.show("volume %s, 2 GiB", v.ID)
	d.show("its file: %s", d.image)
	d.show("          %s", text)
	return "a 2 GiB volume: " + text, d.qemuClean(ctx)
}

func (d *demo) publish(ctx context.Context) (string, error) {
	if err := d.v.Up(ctx); err != nil {
		return "", err
	}
	ms, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(d.v.Target))
	if err != nil || len(ms) == 0 {
		return "", errors.Join(err, d.must(false, "nothing is mounted at %s", d.v.Target))
	}
	d.show("%s (%s, %s) on %s", ms[0].Source, ms[0].FSType, ms[0].Options, d.v.Target)
	d.show("the plugin itself serves that block device; nothing else runs")
	return ms[0].Source + ", " + ms[0].FSType, d.must(ms[0].FSType == "ext4", "the filesystem is %s", ms[0].FSType)
}

// grow lets the volume grow under the mounted filesystem.
func (d *demo) grow(ctx context.Context) (string, error) {
	before, err := d.v.Stats(ctx)
	if err != nil {
		return "", err
	}
	note := "online"
	err = d.v.Expand(ctx, grownSize)
	if !plugin.GrowsExt4Online() && status.Code(errors.Unwrap(err)) == codes.FailedPrecondition {
		note = "image and device online, ext4 at the next stage"
		d.show("this container lacks CAP_SYS_RESOURCE, which the kernel wants for growing a mounted ext4;")
		d.show("image and device have grown, the filesystem follows when the volume is staged again")
		err = d.v.Down(ctx)
		if err == nil {
			err = errors.Join(d.qemuClean(ctx), d.v.Up(ctx))
		}
	}
	if err != nil {
		return "", err
	}
	after, err := d.v.Stats(ctx)
	if err != nil {
		return "", err
	}
	d.show("the filesystem had %.0f MiB, and has %.0f MiB", float64(before.GetTotal())/mib, float64(after.GetTotal())/mib)
	return note, d.must(after.GetTotal() > before.GetTotal()+gib/2, "it had %d bytes and has %d", before.GetTotal(), after.GetTotal())
}

func (d *demo) unpublish(ctx context.Context) (string, error) {
	if err := d.v.Down(ctx); err != nil {
		return "", err
	}
	text, err := sizes(d.image)
	if err != nil {
		return "", err
	}
	d.show("the image is %s", text)
	return "", d.qemuClean(ctx)
}

func (d *demo) remove(ctx context.Context) (string, error) {
	if err := d.v.Delete(ctx); err != nil {
		return "", err
	}
	left, err := plugin.Images(d.dir)
	if err == nil {
		err = d.must(len(left) == 0, "images left in the pool: %q", left)
	}
	if err != nil {
		return "", err
	}
	if err := d.p.Stop(ctx); err != nil {
		return "", err
	}
	rest, err := plugin.Leftovers(d.dir, d.v.ID)
	if err != nil {
		return "", err
	}
	return "nothing left in the pool", d.must(len(rest) == 0, "left on the machine: %s", strings.Join(rest, "; "))
}

// qemuClean has QEMU judge the image at rest.
func (d *demo) qemuClean(ctx context.Context) error {
	out, err := qemuCheck(ctx, d.image)
	if errors.Is(err, exec.ErrNotFound) {
		d.show("(qemu-img is not installed: not checked)")
		return nil
	}
	d.show("qemu-img check: %s", out)
	return d.must(err == nil, "qemu-img check %s: %s", d.image, out)
}

// qemuCheck runs qemu-img check and returns what it says, on one line.
func qemuCheck(ctx context.Context, image string) (string, error) {
	cmd := exec.CommandContext(ctx, "qemu-img", "check", "-f", "vhdx", image)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	text := strings.ReplaceAll(strings.Join(strings.Fields(string(out)), " "), image, filepath.Base(image))
	if err != nil {
		err = fmt.Errorf("qemu-img check: %w", err)
	}
	return text, err
}
