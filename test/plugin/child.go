package plugin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
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
