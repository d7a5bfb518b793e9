package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
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

// tool runs a program of the system.
func tool(ctx context.Context, deadline time.Duration, name string, args ...string) ([]byte, error) {
	out, err := helper.Run(ctx, deadline, name, args...)
	return out, named(err)
}

// self runs one of [Commands].
func self(ctx context.Context, deadline time.Duration, name string, args ...string) ([]byte, error) {
	out, err := helper.RunSelf(ctx, deadline, name, args...)
	return out, named(err)
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
