package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/deathpoint"
	"github.com/csi-vhdx/csi-driver-vhdx/test/plugin"
)

// errDirty: something of the run is still on the machine.
var errDirty = errors.New("could not clean up")

// runner is a run: a plugin, volumes under load, and who kills.
type runner struct {
	o        options
	dir      string
	rng      *rand.Rand
	r        *result
	page     *deathpoint.Page
	found    findings
	progress *progress

	p        *plugin.Process
	epoch    int
	volumes  []*plugin.Volume
	loads    []*load
	guests   []*guest // ext4, xfs, raw
	pressure *pressure
	stop     func() // ends the writers and waits for them
}

// epochKills is how many kills the volumes see before they are looked at from
// the outside, by QEMU too, and replaced by fresh ones: new blocks run out.
const epochKills = 125

// allPoints is from how many kills on every point has to be reached.
const allPoints = 100

// chaos makes a run. The result is nil if it did not come to one.
func chaos(ctx context.Context, o options) (_ *result, err error) {
	var only *regexp.Regexp
	if o.only != "" {
		if only, err = regexp.Compile(o.only); err != nil {
			return nil, fmt.Errorf("--only: %w", err)
		}
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("must run as root: it mounts filesystems and makes loop devices")
	}
	if _, err := os.Stat(o.plugin); err != nil {
		return nil, fmt.Errorf("no plugin to run: %w; make chaos builds it", err)
	}
	c := &runner{o: o, rng: rand.New(rand.NewPCG(o.seed, 1)), r: newResult(o.seed), progress: newProgress(o.log)}
	c.found.log = c.progress.say
	shots := plan(o.kills, only, c.rng)
	if len(shots) == 0 {
		return nil, fmt.Errorf("--only=%s: no kind of kill and no point has such a name", o.only)
	}
	if c.dir, err = os.MkdirTemp(o.parent, "vhdx-chaos-"); err != nil {
		return nil, err
	}
	if c.page, err = deathpoint.CreatePage(filepath.Join(c.dir, "deathpoints")); err != nil {
		return nil, errors.Join(err, os.RemoveAll(c.dir))
	}
	if err := os.Setenv(deathpoint.Variable, filepath.Join(c.dir, "deathpoints")); err != nil {
		return nil, errors.Join(err, os.RemoveAll(c.dir))
	}
	began := time.Now()
	c.progress.say("chaos: %d kills, seed %d, in %s", o.kills, o.seed, c.dir)
	err = c.all(ctx, shots)
	c.r.took = time.Since(began)
	if err == nil {
		err = ownFailures(plugin.LogFile(c.dir))
	}
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("after %d kills: %w; %s", c.r.kills, err, c.keepLog())
	}
	if err == nil && o.keep {
		c.note(c.keepLog())
	}
	c.r.errors, c.r.wrong = c.found.errors.Load(), c.found.wrong.Load() // what fails from here on was killed for good
	if cerr := c.cleanUp(ctx, err); cerr != nil {
		err = errors.Join(err, fmt.Errorf("%w: %w", errDirty, cerr))
	}
	return c.r, errors.Join(err, c.judge(only != nil, err))
}

// judge says what is wrong with a run that has come to its end.
func (c *runner) judge(partial bool, err error) error {
	if err != nil {
		return nil
	}
	for _, p := range deathpoint.All() {
		if c.page.Hits(p) == 0 && unreached[p] == "" {
			c.r.never = append(c.r.never, p)
		}
	}
	if err := c.found.err(); err != nil {
		return err
	}
	if c.r.kills < allPoints || partial {
		return nil
	}
	if len(c.r.never)+len(c.r.missed) > 0 {
		return fmt.Errorf("%d points were never reached, %d were armed in vain: the test does not go there any more", len(c.r.never), len(c.r.missed))
	}
	return nil
}

// all takes the plan's shots, over again if it is too short, in epochs.
func (c *runner) all(ctx context.Context, shots []shot) error {
	p, err := plugin.Start(ctx, plugin.Options{Binary: c.o.plugin, Dir: c.dir})
	if err != nil {
		return err
	}
	c.p = p
	for next := 0; ; {
		if err := c.bringUp(ctx); err != nil {
			return fmt.Errorf("bring the volumes up: %w", err)
		}
		if c.page.Hits(deathpoint.AttachDone) == 0 {
			return fmt.Errorf("%s has no points to die at: build it with -tags chaos", c.o.plugin)
		}
		for last := min(c.o.kills, c.r.kills+epochKills); c.r.kills < last; next++ {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := c.shoot(ctx, shots[next%len(shots)]); err != nil {
				return err
			}
		}
		if err := c.endPressure(); err != nil {
			return err
		}
		if err := c.endEpoch(ctx); err != nil {
			return err
		}
		if c.r.kills >= c.o.kills {
			return c.p.Stop(ctx)
		}
	}
}

// The volumes under load: far larger than what is held in them at a time, so
// that most writes go to new blocks.
const (
	volumeSize = 128 << 30
	loadSize   = 96 << 30
)

// bringUp makes the volumes, and starts writing to them.
func (c *runner) bringUp(ctx context.Context) error {
	c.epoch++
	for _, k := range []struct {
		name   string
		cap    *csi.VolumeCapability
		params map[string]string
	}{
		{"raw", plugin.Raw(), map[string]string{"blockSize": "1Mi", "logicalSectorSize": "512"}},
		{"ext4", plugin.Filesystem("ext4", "commit=300"), map[string]string{"blockSize": "1Mi"}},
		{"xfs", plugin.Filesystem("xfs"), map[string]string{"blockSize": "2Mi"}},
	} {
		var v *plugin.Volume
		err := c.insist(ctx, func(ctx context.Context) (err error) {
			v, err = c.p.Create(ctx, fmt.Sprintf("chaos-%s-%d", k.name, c.epoch), volumeSize, k.cap, k.params)
			return err
		})
		if err != nil {
			return err
		}
		c.volumes = append(c.volumes, v)
		if err := c.insist(ctx, v.Up); err != nil {
			return err
		}
		l, err := openLoad(k.name, loadPath(k.name, v), k.name == "raw", loadSize, c.o, &c.found)
		if err != nil {
			return err
		}
		c.loads = append(c.loads, l)
	}
	for _, fs := range []string{"ext4", "xfs", ""} {
		c.guests = append(c.guests, &guest{c: c, fs: fs})
	}
	writing, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	for _, l := range c.loads {
		for _, w := range l.writers {
			wg.Go(func() { w.run(writing) })
		}
		wg.Go(func() { l.probe.run(writing) })
	}
	c.stop = func() {
		cancel()
		wg.Wait()
	}
	return nil
}

func loadPath(name string, v *plugin.Volume) string {
	if name == "raw" {
		return v.Target
	}
	return filepath.Join(v.Target, "data")
}

// endEpoch takes the volumes down, has QEMU judge their images at rest, reads
// everything back from the volumes brought up anew, and deletes them.
func (c *runner) endEpoch(ctx context.Context) error {
	c.stop()
	for _, l := range c.loads {
		if err := l.close(); err != nil {
			return err
		}
	}
	for _, g := range c.guests {
		if err := g.remove(ctx); err != nil {
			return err
		}
	}
	for _, v := range c.volumes {
		if err := c.insist(ctx, v.Down); err != nil {
			return err
		}
	}
	if err := c.qemu(ctx); err != nil {
		return err
	}
	for i, v := range c.volumes {
		if err := c.insist(ctx, v.Up); err != nil {
			return err
		}
		l := c.loads[i]
		if err := l.reopen(loadPath(l.name, v)); err != nil {
			return err
		}
	}
	err := c.verify(ctx)
	for _, l := range c.loads {
		err = errors.Join(err, l.close())
	}
	if err = errors.Join(err, c.found.err()); err != nil {
		return fmt.Errorf("volumes brought up anew: %w", err)
	}
	for _, v := range c.volumes {
		for _, call := range []func(context.Context) error{v.Down, v.Delete} {
			if err := c.insist(ctx, call); err != nil {
				return err
			}
		}
	}
	c.volumes, c.loads, c.guests = nil, nil, nil
	return nil
}

// qemu has QEMU check the images at rest, where there is a QEMU.
func (c *runner) qemu(ctx context.Context) error {
	images, err := plugin.Images(c.dir)
	if err != nil {
		return err
	}
	for _, im := range images {
		out, err := exec.CommandContext(ctx, "qemu-img", "check", "-f", "vhdx", im).CombinedOutput()
		if errors.Is(err, exec.ErrNotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("qemu-img check %s: %w: %s", im, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

// verify reads all loads back, all writers at once.
func (c *runner) verify(ctx context.Context) error {
	type outcome struct {
		read int64
		err  error
	}
	done := make(chan outcome, len(c.loads)*writersPerLoad)
	for _, l := range c.loads {
		for _, w := range l.writers {
			go func() {
				n, err := w.verify()
				if err != nil {
					c.found.failed(l.name+", read back", err)
				}
				done <- outcome{n, err}
			}()
		}
	}
	ctx, cancel := c.patience(ctx)
	defer cancel()
	for range cap(done) {
		select {
		case o := <-done:
			c.r.read += o.read
		case <-ctx.Done():
			return fmt.Errorf("read back: %w", context.Cause(ctx))
		}
	}
	return c.found.err()
}

// stuck is when something counts as never to come. Nothing is judged by it but
// that the run goes on at all.
const stuck = 2 * time.Minute

var errStuck = fmt.Errorf("nothing for %v", stuck)

func (c *runner) patience(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, stuck, errStuck)
}

// keepLog saves the plugin's log, which goes with everything else, and says where.
func (c *runner) keepLog() string {
	to := strings.TrimSuffix(c.dir, "/") + ".log"
	b, err := os.ReadFile(plugin.LogFile(c.dir))
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		return "the plugin's log is lost: " + err.Error()
	}
	return "the plugin's log is in " + to
}

// cleanUp removes everything from the machine. After a run that ended well
// nothing is left but the directory; otherwise the plugin is ended as a power
// cut would, so that nothing waits for it.
func (c *runner) cleanUp(ctx context.Context, failed error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
	defer cancel()
	errs := []error{c.endPressure()}
	if failed != nil {
		if c.p != nil {
			c.p.CutPower()
		}
		// Cut short in a restart there is no plugin, but its keeper.
		plugin.End(c.dir)
	}
	if c.stop != nil {
		c.found.log = func(string, ...any) {} // what fails now is of no interest
		c.stop()
	}
	for _, l := range c.loads {
		_ = l.close() // its device may be gone
	}
	return errors.Join(append(errs, plugin.Clean(ctx, c.dir))...)
}
