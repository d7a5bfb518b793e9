package main

import (
	"errors"
	"os"
	"syscall"
)

// runInit is the first process of the namespaces: it reaps what containerd's
// shims and dead containers leave to it, and ends with the one that it starts.
func runInit() (int, error) {
	self, err := os.Executable()
	if err != nil {
		return 1, err
	}
	pid, err := syscall.ForkExec(self, append([]string{asInner}, os.Args[1:]...), &syscall.ProcAttr{
		Env: os.Environ(), Files: []uintptr{0, 1, 2},
	})
	if err != nil {
		return 1, err
	}
	for {
		var status syscall.WaitStatus
		dead, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR), dead != pid:
		case err != nil:
			return 1, err
		case status.Signaled():
			return 128 + int(status.Signal()), nil
		default:
			return status.ExitStatus(), nil
		}
	}
}
