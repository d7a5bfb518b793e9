package lease

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Self is this process on a node; "" is the host name.
func Self(node string) Holder {
	if node == "" {
		node, _ = os.Hostname()
	}
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	space, _ := os.Readlink("/proc/self/ns/pid")
	pid := os.Getpid()
	return Holder{Node: node, BootID: strings.TrimSpace(string(boot)), PID: pid, PIDSpace: space, Started: startOf(pid)}
}

// startOf is when a process started, 0 if there is none: field 22 of its stat,
// which begins after the last parenthesis of its name.
func startOf(pid int) uint64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 20 || f[0][0] == 'Z' || f[0][0] == 'X' {
		return 0
	}
	n, _ := strconv.ParseUint(string(f[19]), 10, 64)
	return n
}

// diedBefore reports whether h was a process of self's node and boot that is
// not alive. One of another PID namespace, a container that was there before,
// cannot be looked at and is taken for dead: that only makes the caller wait.
func (h Holder) diedBefore(self Holder) bool {
	if h.Node == "" || h.Node != self.Node || h.BootID == "" || h.BootID != self.BootID {
		return false
	}
	if h.PIDSpace != self.PIDSpace {
		return true
	}
	return h.PID <= 0 || startOf(h.PID) == 0 || startOf(h.PID) != h.Started
}
