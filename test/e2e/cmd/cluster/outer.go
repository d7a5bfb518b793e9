package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const scratchPrefix = "vhdx-cluster-"

// runOuter is the part outside of the namespaces: it prepares, waits, cleans up.
func runOuter(o options) (status int, err error) {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)

	only, err := lockMachine(filepath.Dir(o.Scratch))
	if err != nil {
		return 1, err
	}
	defer func() { _ = only.Close() }()
	sweep(filepath.Dir(o.Scratch))
	lock, err := makeScratch(o.Scratch)
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, clean(o.Scratch), lock.Close()) }()
	if err := os.RemoveAll(o.Logs); err != nil {
		return 1, err
	}
	if err := os.MkdirAll(filepath.Join(o.Logs, "pods"), 0o755); err != nil {
		return 1, err
	}
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { ended <- prepare(ctx, o) }()
	if s, err := wait(signals, ended, cancel); s != 0 || err != nil {
		return s, err
	}
	if err := saveSysctls(o.Scratch); err != nil {
		return 1, err
	}
	cmd, err := initCommand(o)
	if err != nil {
		return 1, err
	}
	go func() { ended <- runLocked(cmd) }()
	status, err = wait(signals, ended, func() { _ = cmd.Process.Kill() })
	if status != 0 {
		fmt.Fprintf(os.Stderr, "[cluster] status %d; logs are in %s\n", status, o.Logs)
	}
	return status, err
}

// wait gives the status of what ended, or of the signal that ended it.
func wait(signals <-chan os.Signal, ended <-chan error, end func()) (int, error) {
	select {
	case err := <-ended:
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return exit.ExitCode(), nil
		}
		return 0, err
	case s := <-signals:
		fmt.Fprintf(os.Stderr, "[cluster] %v: ending\n", s)
		end()
		select {
		case <-ended:
		case <-time.After(30 * time.Second): // a process that waits for a device
		}
		return 128 + int(s.(syscall.Signal)), nil
	}
}

// runLocked runs the first process of the namespaces. The thread must live as
// long as it: the kernel kills the child with the thread, not the process.
func runLocked(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return cmd.Run()
}

func initCommand(o options) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	config, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	return &exec.Cmd{
		Path: self, Args: []string{asInit, string(config)},
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
			Pdeathsig:  syscall.SIGKILL,
		},
	}, nil
}

// lockMachine makes this the only cluster of the machine: two would each put
// back the sysctls that the other one has set.
func lockMachine(dir string) (*os.File, error) {
	name := filepath.Join(dir, "vhdx-cluster.lock")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("another cluster runs on this machine (it holds %s): %w", name, err), f.Close())
	}
	return f, nil
}

// makeScratch makes the directory and locks it: while the lock is held, no
// other start takes it for a dead one's.
func makeScratch(dir string) (*os.File, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	return lock, unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
}
