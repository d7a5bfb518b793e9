package helper

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/deathpoint"
)

// Talk is a child that goes on while its parent does something else, and ends
// when it is told to, or when its parent has died: it sees that by the end of
// its standard input. Unlike the children of Run it is not killed with its
// parent, so that it can put back what it has changed.
type Talk struct {
	name  string
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines *bufio.Scanner
	tail  *tail

	waiting sync.Once
	ended   chan struct{} // closed when err is known
	err     error
}

// Start runs a [Command] of this program that is talked to.
func Start(ctx context.Context, name string, args ...string) (*Talk, error) {
	c := Call{Name: name, Args: args, Self: true}
	if f, ok := ctx.Value(heldKey{}).(*os.File); ok && f != nil {
		c.Files = slices.Clone([]*os.File{f})
	}
	cmd, err := c.command()
	if err != nil {
		return nil, err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	t := &Talk{name: name, cmd: cmd, tail: &tail{max: maxStderr}, ended: make(chan struct{})}
	cmd.Stderr = t.tail
	if t.in, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	t.lines = bufio.NewScanner(out)
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	deathpoint.Helper(name)
	return t, nil
}

// Line is the next line that the child says. What it says without a line has
// failed it. When ctx ends first the child is left to itself: end it with End.
func (t *Talk) Line(ctx context.Context) (string, error) {
	said := make(chan string, 1)
	go func() {
		defer close(said)
		if t.lines.Scan() {
			said <- t.lines.Text()
		}
	}()
	select {
	case line, ok := <-said:
		if ok {
			return line, nil
		}
		return "", errors.Join(t.End(ctx), fmt.Errorf("%s ended without a word", t.name))
	case <-ctx.Done():
		return "", fmt.Errorf("%s: %w", t.name, ctx.Err())
	}
}

// Kill ends the child at once. What it has changed stays.
func (t *Talk) Kill() error { return t.cmd.Process.Kill() }

func (t *Talk) result(err error) error {
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return err
	}
	e := &ExitError{Name: t.name, Code: exit.ExitCode(), Stderr: strings.TrimSpace(string(t.tail.buf))}
	if e.Code > exitErrno {
		e.Errno = syscall.Errno(e.Code - exitErrno)
	}
	return e
}

// End tells the child to end, and waits for that until ctx ends.
func (t *Talk) End(ctx context.Context) error {
	t.in.Close()
	t.waiting.Do(func() {
		go func() {
			t.err = t.result(t.cmd.Wait())
			close(t.ended)
		}()
	})
	select {
	case <-t.ended:
		return t.err
	case <-ctx.Done():
		return fmt.Errorf("%w: %s (pid %d)", ErrStuck, t.name, t.cmd.Process.Pid)
	}
}
