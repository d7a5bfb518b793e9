package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What kubelet sets and no namespace covers.
var sysctls = []string{
	"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
	"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
}

func saveSysctls(scratch string) error {
	for _, name := range sysctls {
		value, err := os.ReadFile(filepath.Join("/proc/sys", name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(scratch, sysctlFile(name)), value, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func sysctlFile(name string) string { return "sysctl." + strings.ReplaceAll(name, "/", ".") }

func restoreSysctls(scratch string) error {
	var errs []error
	for _, name := range sysctls {
		value, err := os.ReadFile(filepath.Join(scratch, sysctlFile(name)))
		if errors.Is(err, fs.ErrNotExist) {
			continue // it did not come so far
		}
		if now, rerr := os.ReadFile(filepath.Join("/proc/sys", name)); rerr == nil && bytes.Equal(now, value) {
			continue // it may not be writable here
		}
		if err == nil {
			err = os.WriteFile(filepath.Join("/proc/sys", name), value, 0o600)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// sweep cleans up after starts that were killed.
func sweep(parent string) {
	dirs, _ := filepath.Glob(filepath.Join(parent, scratchPrefix+"*")) // the pattern is well-formed
	for _, dir := range dirs {
		lock, err := os.Open(filepath.Join(dir, "lock"))
		if err != nil {
			continue
		}
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			fmt.Fprintf(os.Stderr, "[cluster] cleaning up after an earlier start: %s\n", dir)
			if err := clean(dir); err != nil {
				fmt.Fprintf(os.Stderr, "[cluster] %v\n", err)
			}
		}
		_ = lock.Close()
	}
}

// clean undoes what outlives the namespaces. All processes in them are dead.
func clean(scratch string) error {
	inMemory, _ := filepath.Glob("/dev/shm/" + filepath.Base(scratch) + "-*") // the pattern is well-formed
	for _, dir := range inMemory {
		_ = os.RemoveAll(dir)
	}
	if err := errors.Join(
		restoreSysctls(scratch), // first: it takes no time
		detachLoops(filepath.Join(scratch, "state")),
		removeCgroups(filepath.Base(scratch)),
	); err != nil {
		return err // the next start tries again, with what the directory says
	}
	return os.RemoveAll(scratch)
}

// cgroupRoots are the directories below which every pod's cgroups are: one for
// each hierarchy of cgroup v1, or the only one of v2.
func cgroupRoots() ([]string, error) {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return []string{"/sys/fs/cgroup"}, nil
	}
	roots, err := filepath.Glob("/sys/fs/cgroup/*")
	return slices.DeleteFunc(roots, func(r string) bool {
		_, err := os.Stat(filepath.Join(r, "cgroup.procs"))
		return err != nil || filepath.Base(r) == "unified"
	}), err
}

// removeCgroups waits a little: the last tasks leave after their namespace died.
func removeCgroups(name string) error {
	// All of them: a container runtime uses more hierarchies than kubelet.
	roots, err := filepath.Glob("/sys/fs/cgroup/*")
	if err != nil {
		return err
	}
	roots = append(roots, "/sys/fs/cgroup")
	deadline := time.Now().Add(10 * time.Second)
	for _, root := range roots {
		for {
			err := removeTree(filepath.Join(root, name))
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				return err
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	return nil
}

// removeTree removes directories only: a cgroup's files go with it.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return unix.Rmdir(dir)
}
