package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/test/plugin"
)

// demo is one run: a plugin, a volume in it, and the data that must be there.
type demo struct {
	binary, dir string
	out         io.Writer

	p      *plugin.Process
	v      *plugin.Volume
	image  string          // the volume's VHDX file
	cut    string          // the state of the medium at the power cut
	dirty  vhdx.ReplayInfo // what its log holds
	files  []file
	booted int64 // how long the plugin's log was at the second start
	frozen bool  // the plugin's processes are stopped by SIGSTOP

	done   []result
	checks int // comparisons that held
	began  time.Time
}

// result is one line of the summary.
type result struct {
	title string
	took  time.Duration
	note  string
}

type step struct {
	title string
	do    func(*demo, context.Context) (note string, err error)
}

// steps are the demo. Each returns what the summary says about it.
var steps = []step{
	{"Start vhdx-csi --mode=all on an empty pool", (*demo).start},
	{"Create a volume (CreateVolume)", (*demo).create},
	{"Attach, stage and publish it (ext4)", (*demo).publish},
	{"Write files, sync them, keep their checksums", (*demo).write},
	{"Kill the server, again and again, under a writer that never syncs", (*demo).kill},
	{"Cut the power: freeze the plugin, copy the medium, kill -9", (*demo).powerCut},
	{"Boot: put back the medium as it was, start the plugin again", (*demo).boot},
	{"Stage it again: the VHDX log is replayed", (*demo).replay},
	{"Verify every checksum", (*demo).verify},
	{"Grow it while it is mounted (ControllerExpand, NodeExpand)", (*demo).grow},
	{"Verify every checksum again, write one more file", (*demo).verifyAndWrite},
	{"Unpublish, unstage, detach; QEMU checks the file", (*demo).unpublish},
	{"Delete it and stop the plugin", (*demo).remove},
}

func (d *demo) run(ctx context.Context) error {
	d.began = time.Now()
	d.say("Working in %s", d.dir)
	for i, s := range steps {
		if err := ctx.Err(); err != nil {
			return err
		}
		d.say("")
		d.say("[%d/%d] %s", i+1, len(steps), s.title)
		start := time.Now()
		note, err := s.do(d, ctx)
		if err != nil {
			d.say("  FAILED")
			return fmt.Errorf("step %d, %s: %w", i+1, s.title, err)
		}
		took := time.Since(start)
		d.say("  ok, %.2f s", took.Seconds())
		d.done = append(d.done, result{s.title, took, note})
	}
	return nil
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }

// show prints a line about what a step has found.
func (d *demo) show(format string, args ...any) { d.say("  "+format, args...) }

// cleanUp removes everything from the machine, wherever the run has stopped.
// First it asks the plugin, in the order a cluster would; what is left then is
// removed by force.
func (d *demo) cleanUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	if d.p != nil {
		d.endPlugin(ctx)
	}
	if err := plugin.Clean(ctx, d.dir); err != nil {
		return err
	}
	d.say("")
	d.say("Cleaned up: no mount, loop device, process or file of the demo is left.")
	return nil
}

func (d *demo) endPlugin(ctx context.Context) {
	if d.frozen {
		d.p.CutPower()
		return
	}
	select {
	case <-d.p.Done():
		return
	default:
	}
	// The worker may just have been killed.
	if d.v != nil && d.p.Await(ctx) == nil {
		_ = errors.Join(d.v.Down(ctx), d.v.Delete(ctx)) // best effort: Clean finds what is left
	}
	if d.p.Stop(ctx) != nil {
		d.p.Kill()
	}
}

// summary is the one screen at the end.
func (d *demo) summary() {
	d.say("")
	d.say("%s", strings.Repeat("=", 78))
	for i, r := range d.done {
		d.say("%2d  %6.2f s  %s", i+1, r.took.Seconds(), r.title)
		if r.note != "" {
			d.say("              %s", r.note)
		}
	}
	d.say("%s", strings.Repeat("=", 78))
	d.say("PASSED: %d checks held, none failed, in %.1f s.", d.checks, time.Since(d.began).Seconds())
}

// must counts a check that held, or says what did not.
func (d *demo) must(ok bool, format string, args ...any) error {
	if !ok {
		return fmt.Errorf("MISMATCH: "+format, args...)
	}
	d.checks++
	return nil
}

// sizes describes a sparse file.
func sizes(path string) (string, error) {
	st, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return "", fmt.Errorf("stat %s: no block count", path)
	}
	return fmt.Sprintf("%.1f MiB long, %.1f MiB on disk", float64(st.Size())/mib, float64(sys.Blocks)*512/mib), nil
}

const (
	mib = 1 << 20
	gib = 1 << 30
)
