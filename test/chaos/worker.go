package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/test/plugin"
)

// childOf finds the process of that role, "worker" or "keeper", that a plugin
// has started, if there is one that is alive. A dead one has no arguments.
func childOf(p *plugin.Process, role string, not ...int) (pid int, ok bool) {
	pids, err := p.Children()
	if err != nil {
		return 0, false // it may have ended: whoever waits sees that
	}
	for _, pid := range pids {
		args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && slices.ContainsFunc(bytes.Split(args, []byte{0}), func(a []byte) bool { return string(a) == role }) && !slices.Contains(not, pid) {
			return pid, true
		}
	}
	return 0, false
}

// awaitChild waits for one.
func awaitChild(ctx context.Context, p *plugin.Process, role string, not ...int) (int, error) {
	for {
		if pid, ok := childOf(p, role, not...); ok {
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
