package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// memoryGroup is a cgroup of the memory controller, of version 1 or 2.
type memoryGroup struct {
	dir string
	v2  bool
}

// errNoGroups: this machine gives no memory cgroups to this process.
var errNoGroups = errors.New("no memory cgroup can be made here")

// newMemoryGroup makes one below this process's own group or, where that must
// not have any, at the top.
func newMemoryGroup(name string, limit int64) (*memoryGroup, error) {
	own, err := ownGroups("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	name = fmt.Sprintf("vhdx-chaos-%d-%s", os.Getpid(), name)
	var errs []error
	for _, parent := range own {
		g := &memoryGroup{dir: filepath.Join(parent.dir, name), v2: parent.v2}
		if g.v2 {
			_ = os.WriteFile(filepath.Join(parent.dir, "cgroup.subtree_control"), []byte("+memory"), 0) // it may be on; without it the limit below fails
		}
		err := os.Mkdir(g.dir, 0o700)
		if err == nil {
			if err = g.limit(limit); err == nil {
				return g, nil
			}
			_ = os.Remove(g.dir)
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("%w: %w", errNoGroups, errors.Join(errs...))
}

// ownGroups lists where a group may be made, the best place first.
func ownGroups(file string) ([]memoryGroup, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var found []memoryGroup
	for line := range strings.Lines(string(b)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		root, v2 := "/sys/fs/cgroup/memory", false
		switch {
		case parts[0] == "0" && parts[1] == "":
			root, v2 = "/sys/fs/cgroup", true
		case !slices.Contains(strings.Split(parts[1], ","), "memory"):
			continue
		}
		for _, dir := range []string{filepath.Join(root, parts[2]), root} {
			if _, err := os.Stat(dir); err == nil && !slices.Contains(found, memoryGroup{dir, v2}) {
				found = append(found, memoryGroup{dir, v2})
			}
		}
	}
	return found, nil
}

func (g *memoryGroup) limit(n int64) error {
	name := "memory.limit_in_bytes"
	if g.v2 {
		name = "memory.max"
	}
	return os.WriteFile(filepath.Join(g.dir, name), []byte(strconv.FormatInt(n, 10)), 0)
}

func (g *memoryGroup) add(pid int) error {
	return os.WriteFile(filepath.Join(g.dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
}

// kills counts the processes that the kernel has killed in it for want of memory.
func (g *memoryGroup) kills() (int, error) {
	name := "memory.oom_control"
	if g.v2 {
		name = "memory.events"
	}
	b, err := os.ReadFile(filepath.Join(g.dir, name))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "oom_kill "); ok {
			return strconv.Atoi(strings.TrimSpace(v))
		}
	}
	return 0, fmt.Errorf("%s/%s does not count kills", g.dir, name)
}

// remove moves what still runs in it to the group above, and removes it.
func (g *memoryGroup) remove() error {
	var err error
	for range 200 {
		pids, _ := os.ReadFile(filepath.Join(g.dir, "cgroup.procs")) // gone is well
		for _, pid := range bytes.Fields(pids) {
			_ = os.WriteFile(filepath.Join(filepath.Dir(g.dir), "cgroup.procs"), pid, 0) // it may end meanwhile
		}
		if err = os.Remove(g.dir); err == nil || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		time.Sleep(10 * time.Millisecond) // a process that is dying
	}
	return err
}

// pressure keeps the memory of the plugin, and of one who writes to a volume,
// scarce.
type pressure struct {
	groups []*memoryGroup
	hogs   []func()
}

// The limits: what a worker takes, and a little; and what makes a writer wait
// for its own pages to be written out.
const (
	pluginMemory = 192 << 20
	writerMemory = 32 << 20
)

// press moves the plugin's processes into a group whose memory a hog fills
// with its page cache, and has another hog write to the volume.
func press(ctx context.Context, pids []int, dir, volume string) (p *pressure, err error) {
	p = &pressure{}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.end())
		}
	}()
	scratch := filepath.Join(dir, "hog")
	if err := os.WriteFile(scratch, nil, 0o600); err != nil {
		return p, err
	}
	if err := os.Truncate(scratch, hogFile); err != nil {
		return p, err
	}
	for _, h := range []struct {
		name  string
		limit int64
		pids  []int
		what  string
	}{{"plugin", pluginMemory, pids, hogCache + scratch}, {"writer", writerMemory, nil, hogDirty + volume}} {
		g, err := newMemoryGroup(h.name, h.limit)
		if err != nil {
			return p, err
		}
		p.groups = append(p.groups, g)
		for _, pid := range h.pids {
			if err := g.add(pid); err != nil {
				return p, err
			}
		}
		stop, err := startHog(g, h.what)
		if err != nil {
			return p, err
		}
		p.hogs = append(p.hogs, stop)
	}
	select { // let it begin
	case <-ctx.Done():
	case <-time.After(100 * time.Millisecond):
	}
	return p, nil
}

func (p *pressure) end() error {
	var errs []error
	for _, stop := range p.hogs {
		stop()
	}
	for _, g := range p.groups {
		errs = append(errs, g.remove())
	}
	return errors.Join(errs...)
}

// outOfMemory has the kernel kill a process for want of memory: it shares a
// small group with a hog, and is the one that the kernel likes least.
func outOfMemory(ctx context.Context, pid int) (err error) {
	g, err := newMemoryGroup("oom", 16<<20)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.remove()) }()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("1000"), 0); err != nil {
		return err
	}
	if err := g.add(pid); err != nil {
		return err
	}
	stop, err := startHog(g, hogHeap)
	if err != nil {
		return err
	}
	defer stop()
	for {
		n, err := g.kills()
		if err != nil {
			return err
		}
		if n > 0 && dead(pid) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the kernel does not kill process %d for want of memory: %w", pid, context.Cause(ctx))
		case <-time.After(time.Millisecond):
		}
	}
}

// dead reports whether a process has been killed: it is gone, a zombie, or
// has a SIGKILL pending that a wait in the kernel holds up.
func dead(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch key {
		case "State":
			if value != "" && (value[0] == 'Z' || value[0] == 'X') {
				return true
			}
		case "SigPnd", "ShdPnd":
			if n, err := strconv.ParseUint(value, 16, 64); err == nil && n&(1<<(unix.SIGKILL-1)) != 0 {
				return true
			}
		}
	}
	return false
}
