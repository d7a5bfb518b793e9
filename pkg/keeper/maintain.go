package keeper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// Maintenance says how to have a keeper.
type Maintenance struct {
	Socket string
	// Command starts one that serves Socket. It runs in a session of its own,
	// with this process's standard error, and outlives this process.
	Command []string
	Build   string
	// Note, if set, is told of each keeper that is started or lost.
	Note func(text string)
}

// startPatience is how long a new keeper may take to answer.
const startPatience = 10 * time.Second

// Maintain makes sure that a keeper runs, one from before or a new one, and
// starts another whenever it ends. stop ends that, and the keeper too if it
// holds nothing; the error is ErrHolding if it does.
func Maintain(ctx context.Context, m Maintenance) (stop func(context.Context) error, err error) {
	if m.Note == nil {
		m.Note = func(string) {}
	}
	lost := make(chan error, 1)
	d := Dialer{Socket: m.Socket, Build: m.Build, Lost: func(err error) {
		select {
		case lost <- err:
		default: // one is enough
		}
	}}
	c, err := d.Dial(ctx)
	if errors.Is(err, ErrUnavailable) {
		if err = m.start(ctx, d); err == nil {
			c, err = d.Dial(ctx)
		}
	}
	if err != nil {
		return nil, err
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.run(running, d, lost)
	}()
	return func(ctx context.Context) error {
		cancel()
		<-done
		return errors.Join(stopAndWait(ctx, c), c.Close())
	}, nil
}

// stopAndWait returns when the keeper's process has ended.
func stopAndWait(ctx context.Context, c *Client) error {
	s, err := c.Status(ctx)
	if err == nil {
		err = c.Stop(ctx, false)
	}
	if err != nil {
		if errors.Is(err, ErrUnavailable) {
			return nil
		}
		return err
	}
	for syscall.Kill(s.PID, 0) == nil && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	return nil
}

// run starts a keeper each time one is lost.
func (m Maintenance) run(ctx context.Context, d Dialer, lost <-chan error) {
	for {
		select {
		case <-ctx.Done():
			return
		case err := <-lost:
			m.Note(fmt.Sprintf("the keeper has gone: %v", err))
		}
		for wait := 10 * time.Millisecond; ; wait = min(10*wait, 5*time.Second) {
			err := m.start(ctx, d)
			if err == nil || ctx.Err() != nil {
				break
			}
			m.Note(fmt.Sprintf("no keeper: %v", err))
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
		}
	}
}

// start returns when a keeper answers, started here or by somebody else.
func (m Maintenance) start(ctx context.Context, d Dialer) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	cmd := exec.Command(m.Command[0], m.Command[1:]...)
	if cmd.Path == "/proc/self/exe" {
		cmd.Args[0] = os.Args[0] // what an operator looks for in a list of processes
	}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the keeper: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		l, err := d.connect(ctx)
		if err == nil {
			l.close()
			<-l.dead
			m.Note(fmt.Sprintf("started a keeper, process %d", cmd.Process.Pid))
			return nil
		}
		select {
		case <-time.After(wait):
		case end := <-ended:
			// It may have found another one running.
			if l, err := d.connect(ctx); err == nil {
				l.close()
				<-l.dead
				return nil
			}
			return fmt.Errorf("the keeper ended at once: %w", errors.Join(end, err))
		case <-ctx.Done():
			return fmt.Errorf("the keeper (process %d) does not answer: %w", cmd.Process.Pid, err)
		}
	}
}
