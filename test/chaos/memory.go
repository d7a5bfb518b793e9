package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
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

func newMemoryGroup(name string, limit int64) (*memoryGroup, error) {
	name = fmt.Sprintf("vhdx-chaos-%d-%s", os.Getpid(), name)
	var errs []error
	for _, g := range []*memoryGroup{{dir: "/sys/fs/cgroup/memory/" + name}, {dir: "/sys/fs/cgroup/" + name, v2: true}} {
		if g.v2 {
			_ = os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte("+memory"), 0) // it may be on; without it the limit below fails
		}
		if _, err := os.Stat(filepath.Dir(g.dir)); err != nil {
			errs = append(errs, err)
			continue
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

// hogName is the subcommand that makes this program a hog.
const hogName = "hog"

// The things that a hog does, as soon as its standard input says so.
const (
	hogHeap  = "heap"   // takes memory until it dies
	hogCache = "cache:" // reads a file through the page cache, over and over
	hogDirty = "dirty:" // writes a file through the page cache, over and over
)

// startHog starts a child that lives no longer than this process.
func startHog(g *memoryGroup, what string) (stop func(), err error) {
	cmd := exec.Command("/proc/self/exe", hogName, what)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a hog: %w", err)
	}
	stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	}
	if err := g.add(cmd.Process.Pid); err != nil {
		stop()
		return nil, err
	}
	if _, err := stdin.Write([]byte{1}); err != nil {
		stop()
		return nil, err
	}
	return stop, nil
}

// hog is the child's life. It ends with its parent, which holds the other end
// of its standard input.
func hog(what string) {
	in := bufio.NewReader(os.Stdin)
	if _, err := in.ReadByte(); err != nil {
		os.Exit(0)
	}
	go func() {
		_, _ = io.Copy(io.Discard, in) // until the parent is gone
		os.Exit(0)
	}()
	buf := make([]byte, 1<<20)
	if what == hogHeap {
		var all [][]byte
		for {
			b := make([]byte, len(buf))
			for i := 0; i < len(b); i += pageSize {
				b[i] = 1
			}
			all = append(all, b)
			runtime.KeepAlive(all)
		}
	}
	path, reads := strings.CutPrefix(what, hogCache)
	if !reads {
		path = strings.TrimPrefix(what, hogDirty)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		fmt.Fprintln(os.Stderr, "hog:", err)
		os.Exit(1)
	}
	for at := int64(0); ; at = (at + int64(len(buf))) % hogFile {
		if reads {
			_, err = f.ReadAt(buf, at)
		} else {
			_, err = f.WriteAt(buf, at)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "hog:", err)
			os.Exit(1)
		}
		time.Sleep(2 * time.Millisecond) // reclaim is wanted, not the whole processor
	}
}

const hogFile = 128 << 20

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
