package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/deathpoint"
	"github.com/csi-vhdx/csi-driver-vhdx/test/plugin"
)

// restBetween is the longest time between the end of one gap and the next kill.
const restBetween = 100 * time.Millisecond

// shoot takes one shot and waits until everything is well again.
func (c *runner) shoot(ctx context.Context, s shot) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Duration(c.rng.Int64N(int64(restBetween)))):
	}
	if s.kind != killPressure {
		if err := c.endPressure(); err != nil {
			return err
		}
	}
	for _, l := range c.loads {
		l.probe.mark()
	}
	patience, cancel := c.patience(ctx)
	defer cancel()
	var err error
	switch s.kind {
	case killAtPoint:
		err = c.atPoint(patience, s)
	case killSuccessor:
		err = c.successor(patience, s)
	case killCalls:
		err = c.whileCalls(patience)
	case killSupervisor, restart:
		err = c.supervisor(patience, s)
	case killKeeper:
		err = c.keeper(patience)
	default:
		err = c.plain(patience, s.kind)
	}
	if err != nil {
		return fmt.Errorf("kill %d, %s %v: %w", c.r.kills+1, s.kind, s.point, errors.Join(err, c.found.err()))
	}
	c.progress.show("%d of %d kills, %d I/O errors, %d wrong sectors, %.1f GiB read back; last: %s",
		c.r.kills, c.o.kills, c.found.errors.Load(), c.found.wrong.Load(), float64(c.r.read)/(1<<30), s.kind)
	return nil
}

// plain is a death that comes from outside.
func (c *runner) plain(ctx context.Context, k kind) error {
	pid, err := c.p.AwaitChild(ctx, plugin.Worker)
	if err != nil {
		return err
	}
	if k == killPressure && c.pressure == nil {
		pids, err := c.p.Children()
		if err == nil {
			c.pressure, err = press(ctx, append(pids, c.p.PID()), c.dir, filepath.Join(c.volumes[2].Target, "hog"))
		}
		if errors.Is(err, errNoGroups) {
			c.note("no memory cgroups here: kills under pressure are plain kills")
			err = nil
		}
		if err != nil {
			return err
		}
	}
	death := deathpoint.Now()
	switch k {
	case killHang:
		err = syscall.Kill(pid, syscall.SIGSTOP)
	case killStopped:
		err = syscall.Kill(pid, syscall.SIGSTOP)
		time.Sleep(time.Duration(c.rng.Int64N(int64(300 * time.Millisecond))))
		err = errors.Join(err, syscall.Kill(pid, syscall.SIGKILL))
	case killOOM:
		if err = outOfMemory(ctx, pid); errors.Is(err, errNoGroups) {
			c.r.imitated = true
			c.note("no memory cgroups here: out-of-memory kills are imitated by SIGKILL")
			err = syscall.Kill(pid, syscall.SIGKILL)
		}
	default:
		err = syscall.Kill(pid, syscall.SIGKILL)
	}
	if err != nil {
		return fmt.Errorf("kill worker %d: %w", pid, err)
	}
	return c.settle(ctx, k, death, pid)
}

func (c *runner) note(text string) {
	for _, n := range c.r.notes {
		if n == text {
			return
		}
	}
	c.r.notes = append(c.r.notes, text)
}

func (c *runner) endPressure() error {
	if c.pressure == nil {
		return nil
	}
	p := c.pressure
	c.pressure = nil
	return p.end()
}

// settle waits for a new worker and for the volumes to be served again, takes
// the gap, and reads everything back.
func (c *runner) settle(ctx context.Context, k kind, death time.Duration, gone ...int) error {
	if _, err := c.p.AwaitChild(ctx, plugin.Worker, gone...); err != nil {
		return err
	}
	served := deathpoint.Now()
	var gap time.Duration
	for _, l := range c.loads {
		g, err := l.probe.since(ctx, death, served)
		if err != nil {
			return err
		}
		gap = max(gap, g)
	}
	c.r.byKind[k]++
	if k != restart {
		c.r.kills++
	}
	c.r.gaps[k] = append(c.r.gaps[k], gap)
	return c.verify(ctx)
}

// notComing is how long a point may take to be come to.
const notComing = 20 * time.Second

// atPoint has the worker kill itself at a point.
func (c *runner) atPoint(ctx context.Context, s shot) error {
	before := c.page.Last()
	way := wayTo(s.point)
	if way == byCalls {
		c.page.Arm(s.point, 1)
		g := c.guestFor(s.point)
		if err := g.cycle(ctx, ofFirstStage(s.point)); err != nil {
			return err
		}
		if c.page.Last().Number == before.Number { // it is of a second stage
			if err := g.cycle(ctx, false); err != nil {
				return err
			}
		}
		return c.died(ctx, s, before)
	}
	c.page.Arm(s.point, 1+uint32(c.rng.IntN(20)))
	end := time.Now().Add(notComing)
	for n := 0; c.page.Last().Number == before.Number && time.Now().Before(end) && ctx.Err() == nil; n++ {
		if way == byFlush {
			c.loads[n%len(c.loads)].writers[0].flushNow()
		}
		time.Sleep(time.Millisecond)
	}
	return c.died(ctx, s, before)
}

// ofFirstStage reports whether a point is come to only where a new volume is
// formatted.
func ofFirstStage(p deathpoint.Point) bool {
	switch p {
	case deathpoint.HelperMkfsExt4, deathpoint.HelperMkfsXFS,
		deathpoint.NodeFormatting, deathpoint.NodeMkfs, deathpoint.NodeFormatted, deathpoint.NodeUsed:
		return true
	}
	return false
}

// died goes on after a death at a point, or notes that it did not come.
func (c *runner) died(ctx context.Context, s shot, before deathpoint.Death) error {
	d := c.page.Last()
	if c.page.Disarm() || d.Number == before.Number {
		c.r.missed[s.point]++
		c.r.byKind[pointMissed]++
		return c.verify(ctx)
	}
	c.r.atPoint[d.At]++
	c.r.kills += int(d.Number-before.Number) - 1
	return c.settle(ctx, s.kind, d.When, d.PID)
}

// successor kills the worker, and has the next one die while it takes over.
func (c *runner) successor(ctx context.Context, s shot) error {
	before := c.page.Last()
	pid, err := c.p.AwaitChild(ctx, plugin.Worker)
	if err != nil {
		return err
	}
	volume := uint32(1)
	if s.point != deathpoint.RecordsInherited && s.point != deathpoint.TakeoverCommitted { // not every volume has records
		volume += uint32(c.rng.IntN(len(c.loads)))
	}
	c.page.Arm(s.point, volume)
	death := deathpoint.Now()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill worker %d: %w", pid, err)
	}
	for end := time.Now().Add(notComing); c.page.Last().Number == before.Number && time.Now().Before(end) && ctx.Err() == nil; {
		time.Sleep(time.Millisecond)
	}
	d := c.page.Last()
	if c.page.Disarm() || d.Number == before.Number {
		c.r.missed[s.point]++
		c.r.byKind[pointMissed]++
		return c.settle(ctx, killAtRandom, death, pid)
	}
	c.r.atPoint[d.At]++
	c.r.kills++ // there were two
	return c.settle(ctx, s.kind, death, pid, d.PID)
}

// whileCalls kills the worker while a volume comes or goes.
func (c *runner) whileCalls(ctx context.Context) error {
	cycle := make(chan error, 1)
	g := c.guestFor(0)
	anew := c.rng.IntN(4) == 0
	delay := time.Duration(c.rng.Int64N(int64(400 * time.Millisecond)))
	go func() { cycle <- g.cycle(ctx, anew) }()
	time.Sleep(delay)
	pid, err := c.p.AwaitChild(ctx, plugin.Worker)
	death := deathpoint.Now()
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGKILL)
	}
	if err = errors.Join(<-cycle, err); err != nil {
		return err
	}
	return c.settle(ctx, killCalls, death, pid)
}

// supervisor ends the whole plugin but its keeper, and starts another one.
// With a point it is an orderly end, cut short there.
func (c *runner) supervisor(ctx context.Context, s shot) error {
	pid, err := c.p.AwaitChild(ctx, plugin.Worker)
	if err != nil {
		return err
	}
	before := c.page.Last()
	if s.point != 0 {
		c.page.Arm(s.point, 1)
	}
	death := deathpoint.Now()
	if s.kind == killSupervisor && s.point == 0 {
		c.p.Kill()
	} else if err := c.p.Stop(ctx); err != nil && s.point == 0 {
		return err
	}
	if c.p, err = plugin.Start(ctx, plugin.Options{Binary: c.o.plugin, Dir: c.dir}); err != nil {
		return err
	}
	for i, v := range c.volumes {
		c.volumes[i] = v.On(c.p)
	}
	for _, g := range c.guests {
		if g.v != nil {
			g.v = g.v.On(c.p)
		}
	}
	if s.point != 0 {
		return c.died(ctx, s, before)
	}
	return c.settle(ctx, s.kind, death, pid)
}

// keeper kills the keeper, waits until the next one has everything, and kills
// the worker.
func (c *runner) keeper(ctx context.Context) error {
	old, err := c.keeperPID(ctx)
	if err != nil {
		return err
	}
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill keeper %d: %w", old, err)
	}
	for {
		pid, err := c.keeperPID(ctx)
		if err == nil && pid != old {
			return c.plain(ctx, killKeeper)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("no new keeper that holds everything: %w", errors.Join(context.Cause(ctx), err))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// keeperPID asks the keeper who it is; an error if it does not hold all volumes.
func (c *runner) keeperPID(ctx context.Context) (pid int, err error) {
	out, err := exec.CommandContext(ctx, c.o.plugin, "keeper", "status", "--keeper-socket="+filepath.Join(c.dir, "state", "keeper.sock")).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("keeper status: %w: %s", err, out)
	}
	if held := bytes.Count(out, []byte("\nholds ")); held < len(c.volumes) {
		return 0, fmt.Errorf("the keeper holds %d volumes of %d", held, len(c.volumes))
	}
	if _, err := fmt.Sscanf(string(out), "process %d ", &pid); err != nil {
		return 0, fmt.Errorf("keeper status: %w: %s", err, out)
	}
	return pid, nil
}
