package main

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// workerOf finds the worker that a supervisor runs: the child that is told to
// be one and is not dead.
func workerOf(supervisor int) (int, error) {
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", supervisor, supervisor))
	if err != nil {
		return 0, err
	}
	// A child may have been started by any thread of the supervisor.
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", supervisor))
	if err != nil {
		return 0, err
	}
	for _, t := range tasks {
		more, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", supervisor, t.Name())) //nolint:errcheck // a thread that has ended
		children = append(append(children, ' '), more...)
	}
	fields := strings.Fields(string(children))
	slices.Reverse(fields)
	for _, f := range fields {
		pid, err := strconv.Atoi(f)
		if err != nil {
			return 0, err
		}
		if isWorker(pid) {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("process %d has no worker", supervisor)
}

func isWorker(pid int) bool {
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || len(args) == 0 { // a zombie's is empty
		return false
	}
	return slices.ContainsFunc(bytes.Split(args, []byte{0}), func(a []byte) bool { return string(a) == "worker" })
}
