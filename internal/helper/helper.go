package helper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/deathpoint"
)

const (
	// DefaultDeadline is that of a Call which names none.
	DefaultDeadline = 30 * time.Second
	// KillGrace is how long a killed child may take to go away before it
	// counts as stuck.
	KillGrace = 2 * time.Second

	maxStdout = 1 << 20
	maxStderr = 4 << 10
	// pipeGrace is how long a grandchild that outlives its parent may keep
	// the output open.
	pipeGrace = 500 * time.Millisecond
)

var (
	// ErrDeadline: the child did not end in time and was killed.
	ErrDeadline = errors.New("deadline passed")
	// ErrStuck: the child was killed and is still there. Always a [*StuckError].
	ErrStuck = errors.New("process waits in the kernel and cannot be killed")
	// ErrNotWired: main does not call RunIfHelper with this command.
	ErrNotWired = errors.New("not a helper command of this program")
)

// Call is one run of a child process.
type Call struct {
	// Name of a tool, looked up in PATH; with Self that of a [Command].
	Name string
	Args []string
	Self bool
	// Stdin is what the child reads; nil: nothing.
	Stdin []byte
	// Files are the child's descriptors 3, 4, ... They stay the caller's, and
	// may be closed once the child has started.
	Files []*os.File
	// Started, if set, is called when the child has started.
	Started func()
	// Deadline, counted from the start. 0: DefaultDeadline.
	Deadline time.Duration
}

type heldKey struct{}

// Hold gives f to every child that is started under the context returned, after
// Call.Files. A child that outlives this process, because it waits in the
// kernel, keeps f open, and with it a lock of flock(2) on it: so a successor can
// wait until none is left.
func Hold(ctx context.Context, f *os.File) context.Context {
	return context.WithValue(ctx, heldKey{}, f)
}

// Run runs a tool and returns what it wrote to standard output.
func Run(ctx context.Context, deadline time.Duration, name string, args ...string) ([]byte, error) {
	return Call{Name: name, Args: args, Deadline: deadline}.Run(ctx)
}

// RunSelf runs a [Command] of this program in a child process.
func RunSelf(ctx context.Context, deadline time.Duration, name string, args ...string) ([]byte, error) {
	return Call{Name: name, Args: args, Deadline: deadline, Self: true}.Run(ctx)
}

// Run starts the child and waits for it until the deadline. Standard output
// is returned beside an [ExitError] too.
func (c Call) Run(ctx context.Context) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("run %s: %w", c.Name, err)
	}
	if f, ok := ctx.Value(heldKey{}).(*os.File); ok && f != nil {
		c.Files = append(slices.Clone(c.Files), f)
	}
	cmd, err := c.command()
	if err != nil {
		return nil, err
	}
	stdout, stderr := &head{max: maxStdout}, &tail{max: maxStderr}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	started, done := start(cmd)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Name, err)
	}
	deathpoint.Helper(c.Name)
	if c.Started != nil {
		c.Started()
	}
	deadline := c.Deadline
	if deadline <= 0 {
		deadline = DefaultDeadline
	}
	timer := time.NewTimer(deadline)
	defer timer.Stop()
	select {
	case err := <-done:
		return stdout.buf, c.result(err, stderr)
	case <-timer.C:
		return nil, c.kill(cmd, done, fmt.Errorf("%w after %v", ErrDeadline, deadline))
	case <-ctx.Done():
		return nil, c.kill(cmd, done, ctx.Err())
	}
}

func (c Call) command() (*exec.Cmd, error) {
	cmd := exec.Command(c.Name, c.Args...)
	if c.Self {
		if !registered(c.Name) {
			return nil, fmt.Errorf("run %s: %w (main must begin with helper.RunIfHelper)", c.Name, ErrNotWired)
		}
		// The link stays right when the file has been replaced meanwhile.
		cmd = exec.Command("/proc/self/exe")
		cmd.Args = append([]string{selfName, c.Name}, c.Args...)
	}
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	if c.Self {
		// Short-lived: start fast, and end fast where the race detector is built in.
		cmd.Env = append(cmd.Env, "GOMAXPROCS=1", "GOGC=off", "GORACE=atexit_sleep_ms=0")
	}
	if c.Stdin != nil {
		cmd.Stdin = bytes.NewReader(c.Stdin)
	}
	cmd.ExtraFiles = c.Files
	cmd.WaitDelay = pipeGrace
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	return cmd, nil
}

// start runs cmd on a thread of its own: the child's death signal is tied to
// the thread that forked it, which must therefore last as long as the child.
func start(cmd *exec.Cmd) (started <-chan error, done <-chan error) {
	s, d := make(chan error, 1), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		s <- err
		if err != nil {
			return
		}
		d <- cmd.Wait()
		close(d)
	}()
	return s, d
}

// kill ends the child and its process group, for the reason why.
func (c Call) kill(cmd *exec.Cmd, done <-chan error, why error) error {
	pid := cmd.Process.Pid
	// The group first: once its leader has been reaped its number is free.
	_ = syscall.Kill(-pid, syscall.SIGKILL)
	_ = cmd.Process.Kill()
	timer := time.NewTimer(KillGrace)
	defer timer.Stop()
	select {
	case <-done:
		return fmt.Errorf("run %s: %w", c.Name, why)
	case <-timer.C:
	}
	gone := make(chan struct{})
	go func() {
		<-done
		close(gone)
	}()
	return &StuckError{Name: c.Name, PID: pid, Where: where(pid), Gone: gone, Cause: why}
}

func (c Call) result(err error, stderr *tail) error {
	if err == nil || errors.Is(err, exec.ErrWaitDelay) {
		return nil
	}
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return fmt.Errorf("run %s: %w", c.Name, err)
	}
	e := &ExitError{Name: c.Name, Code: exit.ExitCode(), Stderr: strings.TrimSpace(string(stderr.buf))}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		e.Signal = ws.Signal()
	}
	if c.Self && e.Code > exitErrno {
		e.Errno = syscall.Errno(e.Code - exitErrno)
	}
	return e
}
