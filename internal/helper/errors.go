package helper

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// ExitError: the child ran and failed.
type ExitError struct {
	Name   string
	Code   int            // exit code; -1 when a signal ended it
	Signal syscall.Signal // 0 when it exited
	Stderr string         // the end of it, trimmed
	// Errno is the one a Command failed with, if it was one.
	Errno syscall.Errno
}

func (e *ExitError) Error() string {
	how := "exit code " + strconv.Itoa(e.Code)
	if e.Signal != 0 {
		how = "ended by signal: " + e.Signal.String()
	} else if e.Errno != 0 {
		how = "" // the text below says it better
	}
	text := strings.Join(strings.Fields(e.Stderr), " ")
	switch {
	case text == "" && how == "":
		return fmt.Sprintf("%s: %v", e.Name, e.Errno)
	case how == "":
		return e.Name + ": " + text
	case text == "":
		return e.Name + ": " + how
	}
	return e.Name + ": " + how + ": " + text
}

// Unwrap gives the errno of a failed Command.
func (e *ExitError) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

// StuckError: the child was killed and does not go away.
type StuckError struct {
	Name  string
	PID   int
	Where string // its state, and the kernel function it waits in if known
	// Gone is closed when the child has ended after all.
	Gone <-chan struct{}
	// Cause is why it was killed: ErrDeadline or the context's error.
	Cause error
}

func (e *StuckError) Error() string {
	return fmt.Sprintf("run %s (process %d, %s): %v: %v; left behind", e.Name, e.PID, e.Where, e.Cause, ErrStuck)
}

// Unwrap makes errors.Is find ErrStuck and the cause.
func (e *StuckError) Unwrap() []error { return []error{ErrStuck, e.Cause} }

// where says what a process does, from /proc, which never waits for it.
func where(pid int) string {
	dir := "/proc/" + strconv.Itoa(pid)
	state := "state unknown"
	if status, err := os.ReadFile(dir + "/status"); err == nil {
		for line := range strings.Lines(string(status)) {
			if v, ok := strings.CutPrefix(line, "State:"); ok {
				state = "state " + strings.TrimSpace(v)
			}
		}
	}
	if wchan, err := os.ReadFile(dir + "/wchan"); err == nil && len(wchan) > 1 {
		state += " in " + string(wchan)
	}
	return state
}

// head keeps the beginning of what is written to it.
type head struct {
	buf []byte
	max int
}

func (h *head) Write(p []byte) (int, error) {
	h.buf = append(h.buf, p[:min(len(p), h.max-len(h.buf))]...)
	return len(p), nil
}

// tail keeps the end of what is written to it.
type tail struct {
	buf []byte
	max int
}

func (t *tail) Write(p []byte) (int, error) {
	n := len(p)
	p = p[max(0, n-t.max):]
	if drop := len(t.buf) + len(p) - t.max; drop > 0 {
		t.buf = append(t.buf[:0], t.buf[drop:]...)
	}
	t.buf = append(t.buf, p...)
	return n, nil
}
