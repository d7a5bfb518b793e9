package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/driver"
)

const (
	memoryAuto  = "auto"
	memoryNone  = "none"
	memoryLeast = 64 << 20 // below this the collector would only spin
	cgroupLimit = "/sys/fs/cgroup/memory.max"
)

// limitMemory sets the soft limit of the Go heap. A plugin that serves block
// devices must not grow to where the kernel kills it, for its pods' I/O dies
// with it; and what it needs under memory pressure it must have already.
func limitMemory(flag string) error {
	switch {
	case flag == memoryNone:
		return nil
	case flag == memoryAuto && os.Getenv("GOMEMLIMIT") != "":
		return nil
	case flag == memoryAuto:
		limit, err := autoLimit(cgroupLimit)
		if err != nil {
			return err
		}
		debug.SetMemoryLimit(limit)
		return nil
	}
	limit, err := driver.ParseQuantity(flag)
	if err != nil || limit < memoryLeast {
		return errors.Join(fmt.Errorf("--memory-limit=%s: give auto, none or at least 64Mi", flag), err)
	}
	debug.SetMemoryLimit(limit)
	return nil
}

// autoLimit is 90 % of the container's limit, which leaves room for stacks and
// locked buffers, or an eighth of the machine.
func autoLimit(file string) (int64, error) {
	b, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("read the container's memory limit: %w", err)
	}
	if n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil && n > 0 {
		return max(n/10*9, memoryLeast), nil
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, fmt.Errorf("ask for the machine's memory: %w", err)
	}
	total := min(info.Totalram, math.MaxInt64) * uint64(info.Unit)
	return max(int64(total/8), memoryLeast), nil
}
