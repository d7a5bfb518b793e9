package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/helper"
)

func (d Deadlines) filled() Deadlines {
	return Deadlines{
		Probe:   cmp.Or(d.Probe, 30*time.Second),
		Mount:   cmp.Or(d.Mount, 5*time.Minute),
		Unmount: cmp.Or(d.Unmount, 5*time.Minute),
		Format:  cmp.Or(d.Format, 10*time.Minute),
		Check:   cmp.Or(d.Check, 30*time.Minute),
		Resize:  cmp.Or(d.Resize, 10*time.Minute),
		Sync:    cmp.Or(d.Sync, 2*time.Minute),
		Stat:    cmp.Or(d.Stat, 5*time.Second),
	}
}

// tools starts helper processes. Each of them keeps the orphans file open, and
// with it the lock on it: the next plugin process waits for those that the
// death of this one left inside a system call (a mount that still comes into
// being cannot be torn down).
type tools struct{ orphans *os.File }

// run runs a program of the system.
func (t tools) run(ctx context.Context, deadline time.Duration, name string, args ...string) ([]byte, error) {
	return t.call(ctx, helper.Call{Name: name, Args: args, Deadline: deadline})
}

// self runs one of [Commands].
func (t tools) self(ctx context.Context, deadline time.Duration, name string, args ...string) ([]byte, error) {
	return t.call(ctx, helper.Call{Name: name, Args: args, Deadline: deadline, Self: true})
}

func (t tools) call(ctx context.Context, c helper.Call) ([]byte, error) {
	out, err := c.Run(t.hold(ctx))
	return out, named(err)
}

// hold gives the orphans file to the helpers of others, the attacher's, too.
func (t tools) hold(ctx context.Context) context.Context {
	if t.orphans == nil {
		return ctx
	}
	return helper.Hold(ctx, t.orphans)
}

// named makes errors.Is find ErrStuck where the outcome of the helper is unknown.
func named(err error) error {
	if errors.Is(err, helper.ErrDeadline) || errors.Is(err, helper.ErrStuck) {
		return fmt.Errorf("%w: %w", ErrStuck, err)
	}
	return err
}

// exit takes apart the error of a tool that ran and failed.
func exit(err error) (code int, stderr string, ok bool) {
	e, ok := errors.AsType[*helper.ExitError](err)
	if !ok {
		return 0, "", false
	}
	return e.Code, e.Stderr, true
}
