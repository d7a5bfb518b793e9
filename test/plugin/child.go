package plugin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// The processes that a plugin starts, by the argument that tells them what to be.
const (
	Worker = "worker"
	Keeper = "keeper"
)

// Child finds the process of that role that the plugin has started, if one is
// alive that is none of those. A dead one has no arguments.
func (p *Process) Child(role string, not ...int) (pid int, ok bool) {
	pids, err := p.Children()
	if err != nil {
		return 0, false // the plugin may have ended: whoever waits sees that
	}
	for _, pid := range pids {
		args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && !slices.Contains(not, pid) &&
			slices.ContainsFunc(bytes.Split(args, []byte{0}), func(a []byte) bool { return string(a) == role }) {
			return pid, true
		}
	}
	return 0, false
}

// AwaitChild waits for one.
func (p *Process) AwaitChild(ctx context.Context, role string, not ...int) (int, error) {
	for {
		if pid, ok := p.Child(role, not...); ok {
			return pid, nil
		}
		select {
		case <-p.Done():
			return 0, errors.New("the plugin has ended")
		case <-ctx.Done():
			return 0, fmt.Errorf("no %s: %w", role, context.Cause(ctx))
		case <-time.After(time.Millisecond):
		}
	}
}

// Children of the process: its worker, and its keeper if it has started one.
func (p *Process) Children() (pids []int, err error) {
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", p.PID()))
	if err != nil {
		return nil, err
	}
	if len(lists) == 0 {
		return childrenByParent(p.PID())
	}
	for _, l := range lists {
		b, err := os.ReadFile(l)
		if errors.Is(err, os.ErrNotExist) { // a thread that has ended
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, f := range bytes.Fields(b) {
			pid, err := strconv.Atoi(string(f))
			if err != nil {
				return nil, err
			}
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// childrenByParent asks every process who started it, on a kernel without
// CONFIG_PROC_CHILDREN.
func childrenByParent(parent int) (pids []int, err error) {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // it has ended
		}
		// The name, in parentheses, may hold anything; state and parent follow.
		var state string
		var ppid int
		rest := b[bytes.LastIndexByte(b, ')')+1:]
		if _, err := fmt.Sscan(string(rest), &state, &ppid); err != nil || ppid != parent {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, err
}
