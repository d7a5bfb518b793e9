package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/test/plugin"
)

// powerCut takes the medium as a power cut would leave it. The plugin is
// frozen first, so that nothing is written while the copy is made: a copy
// taken beside a running writer would be a state that no cut can leave.
func (d *demo) powerCut(ctx context.Context) (string, error) {
	d.frozen = true
	if err := d.p.Freeze(); err != nil {
		return "", err
	}
	d.cut = filepath.Join(d.dir, "medium.vhdx")
	if err := copyFile(ctx, d.image, d.cut); err != nil {
		return "", err
	}
	d.p.CutPower()
	d.frozen = false
	d.show("the plugin is gone, the filesystem was mounted, the image was never closed")
	replay, err := dirtyLog(d.cut)
	if err != nil {
		return "", err
	}
	d.dirty = replay
	d.show("on the medium: a VHDX log with %d entries (%d pages) to replay", replay.Entries, replay.Pages)
	out, err := qemuCheck(ctx, d.cut)
	if !errors.Is(err, exec.ErrNotFound) {
		d.show("qemu-img check: %s", out)
		if err := d.must(err != nil, "QEMU finds nothing to replay in the medium"); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("log dirty: %d entries, %d pages", replay.Entries, replay.Pages),
		d.must(replay.Entries > 0, "the log on the medium is clean: nothing to show")
}

// dirtyLog says what the log of an image holds, without changing the image.
func dirtyLog(path string) (vhdx.ReplayInfo, error) {
	im, err := vhdx.OpenPath(path, vhdx.OpenOptions{ReadOnly: true})
	if err != nil {
		return vhdx.ReplayInfo{}, fmt.Errorf("open the medium read-only: %w", err)
	}
	return im.Info().Replay, im.Close()
}

// boot puts the copy in the image's place and starts a new plugin.
func (d *demo) boot(ctx context.Context) (string, error) {
	if err := os.Rename(d.cut, d.image); err != nil {
		return "", fmt.Errorf("put the medium back: %w", err)
	}
	st, err := os.Stat(plugin.LogFile(d.dir))
	if err != nil {
		return "", err
	}
	d.booted = st.Size()
	p, err := plugin.Start(ctx, plugin.Options{Binary: d.binary, Dir: d.dir})
	if err != nil {
		return "", err
	}
	d.p, d.v = p, d.v.On(p)
	for _, line := range d.logLines("Journal entry of an earlier process") {
		d.show("plugin: %s", line)
	}
	left, err := plugin.Leftovers(d.dir, d.v.ID)
	if err != nil {
		return "", err
	}
	left = slices.DeleteFunc(left, p.Own)
	return "mounts and device of the dead plugin removed",
		d.must(len(left) == 0, "left of the dead plugin: %s", strings.Join(left, "; "))
}

// replay stages the volume from the dirty image.
func (d *demo) replay(ctx context.Context) (string, error) {
	if err := d.v.Up(ctx); err != nil {
		return "", err
	}
	lines := d.logLines("Replayed the image's log")
	for _, line := range lines {
		d.show("plugin: %s", line)
	}
	want := fmt.Sprintf("entries=%d pages=%d", d.dirty.Entries, d.dirty.Pages)
	return strings.ReplaceAll(want, "=", " "), d.must(len(lines) == 1 && strings.Contains(lines[0], want), "the plugin does not report a replay with %s", want)
}

// logLines are the lines that contain a text, without their heads, of what the
// plugin has logged since it was started again.
func (d *demo) logLines(text string) []string {
	log := plugin.Tail(d.dir, 1<<30)
	var found []string
	for line := range strings.Lines(log[min(d.booted, int64(len(log))):]) {
		if strings.Contains(line, text) {
			_, tail, _ := strings.Cut(line, "] ")
			found = append(found, strings.TrimSpace(tail))
		}
	}
	return found
}

// copyFile copies what is on the medium, holes as holes.
func copyFile(ctx context.Context, from, to string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	buf := make([]byte, mib)
	zero := make([]byte, mib)
	var off int64
	for ctx.Err() == nil {
		n, err := io.ReadFull(src, buf)
		if string(buf[:n]) != string(zero[:n]) {
			if _, err := dst.WriteAt(buf[:n], off); err != nil {
				return fmt.Errorf("copy the medium: %w", err)
			}
		}
		off += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return errors.Join(dst.Truncate(off), dst.Sync())
		}
		if err != nil {
			return fmt.Errorf("copy the medium: %w", err)
		}
	}
	return ctx.Err()
}
