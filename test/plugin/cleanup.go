package plugin

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
)

// Leftovers lists what a plugin in dir still has on this machine: mounts below
// dir, loop devices of the volumes ids and of those that its log names,
// processes that name dir.
func Leftovers(dir string, ids ...string) ([]string, error) {
	mounts, err := mountsBelow(dir)
	if err != nil {
		return nil, err
	}
	var left []string
	for _, m := range mounts {
		left = append(left, fmt.Sprintf("mount of %s (%s %s) on %s", m.Source, m.FSType, m.Root, m.Mountpoint))
	}
	for _, l := range loops(dir, ids) {
		left = append(left, "loop device "+l)
	}
	for _, p := range processes(dir) {
		left = append(left, fmt.Sprintf("process %d (%s)", p.pid, p.args))
	}
	return left, nil
}

// Clean removes what Leftovers finds, without the plugin's help, and then dir.
// With anything left it leaves dir alone and says what is there.
func Clean(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var errs []error
	// First, for a device that a keeper holds and nobody serves would keep
	// waiting whoever unmounts it.
	End(dir)
	mounts, err := mountsBelow(dir)
	errs = append(errs, err)
	for _, m := range slices.Backward(mounts) {
		errs = append(errs, tool(ctx, "umount", m.Mountpoint))
	}
	for _, l := range loops(dir, nil) {
		errs = append(errs, tool(ctx, "losetup", "--detach", strings.Fields(l)[0]))
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		left, err := Leftovers(dir)
		if err == nil && len(left) == 0 {
			return errors.Join(os.RemoveAll(dir))
		}
		if time.Now().After(deadline) {
			return errors.Join(append(errs, err, fmt.Errorf("still there, so %s stays: %s", dir, strings.Join(left, "; ")))...)
		}
		time.Sleep(20 * time.Millisecond) // the kernel removes a loop device a little later
	}
}

// End kills every process of every plugin that ran in dir, a keeper that was
// left on purpose too. What waits for one of their devices fails then.
func End(dir string) {
	for _, p := range processes(dir) {
		if p.plugin(dir) {
			_ = syscall.Kill(p.pid, syscall.SIGKILL) // it may have gone with another
		}
	}
}

func mountsBelow(dir string) ([]*mountinfo.Info, error) {
	ms, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	return ms, nil
}

// logged finds the volumes in the plugin's log.
var logged = regexp.MustCompile(`volume="([^"]+)"`)

// loops lists the loop devices of the volumes ids and of those that the
// plugin's log names. Other plugins, of other tests, may have theirs at the
// same time.
func loops(dir string, ids []string) []string {
	log, _ := os.ReadFile(LogFile(dir)) // without one it never started
	for _, m := range logged.FindAllSubmatch(log, -1) {
		ids = append(ids, string(m[1]))
	}
	tags := make(map[string]bool)
	for _, id := range ids {
		// How the fuseloop backend names the backing file of a volume.
		sum := sha256.Sum256([]byte(id))
		tags["csi-vhdx-"+hex.EncodeToString(sum[:16])] = true
	}
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file") // the pattern is well-formed
	var found []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // it went away
		}
		backing := strings.TrimSpace(string(b))
		if tags[strings.Fields(filepath.Base(backing) + " ")[0]] {
			found = append(found, "/dev/"+strings.Split(f, "/")[3]+" ("+backing+")")
		}
	}
	return found
}

// process is one that names the directory of a plugin.
type process struct {
	pid  int
	args string
}

// plugin reports whether it is one of the plugin in dir: supervisor, worker, keeper.
func (p process) plugin(dir string) bool {
	return strings.Contains(p.args, "--endpoint=unix://"+dir+"/") || strings.Contains(p.args, "--keeper-socket="+dir+"/")
}

// processes lists the other processes that have dir in their command line.
func processes(dir string) []process {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is well-formed
	var found []process
	for _, f := range files {
		b, err := os.ReadFile(f)
		pid, _ := strconv.Atoi(strings.Split(f, "/")[2])
		if err == nil && pid != os.Getpid() && strings.Contains(string(b), dir) {
			found = append(found, process{pid, strings.ReplaceAll(strings.TrimRight(string(b), "\x00"), "\x00", " ")})
		}
	}
	return found
}

// tool runs a program that may wait for a device that is no more.
func tool(ctx context.Context, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
