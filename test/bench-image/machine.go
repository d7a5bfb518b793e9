package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

var (
	cpuModel = regexp.MustCompile(`(?m)^model name\s*:\s*(.*)$`)
	version  = regexp.MustCompile(`version (\S+)`)
)

// machine describes what a run was on, as far as it can be told.
func machine(ctx context.Context, dir string) string {
	model := runtime.GOARCH
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if m := cpuModel.FindSubmatch(b); m != nil {
			model = string(m[1])
		}
	}
	kernel := "Linux"
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		kernel = "Linux " + string(bytes.TrimRight(u.Release[:], "\x00"))
	}
	filesystem := "a filesystem"
	if b, err := exec.CommandContext(ctx, "findmnt", "-n", "-o", "FSTYPE", "-T", dir).Output(); err == nil {
		filesystem = strings.TrimSpace(string(b))
	}
	qemu := "qemu-img"
	if b, err := exec.CommandContext(ctx, "qemu-img", "--version").Output(); err == nil {
		if m := version.FindSubmatch(b); m != nil {
			qemu += " " + string(m[1])
		}
	}
	return fmt.Sprintf("%d processors (%s), %s, %s; %s", runtime.NumCPU(), model, kernel, filesystem, qemu)
}

// load is the load average of the last minute.
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(b), " ")
	return first
}
