package fuseloop

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/helper"
	"github.com/csi-vhdx/csi-driver-vhdx/internal/loopdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
)

// Teardown removes the devices of a volume whose server is no more.
func (a *Attacher) Teardown(ctx context.Context, id string) error {
	wrap := func(err error) error { return fmt.Errorf("tear down volume %s: %w", id, err) }
	tag := tagOf(id)
	if err := a.reserve(tag); err != nil {
		return wrap(err)
	}
	defer a.forget(tag, nil)
	found, err := loopdev.Find(tag)
	if err != nil {
		return wrap(err)
	}
	for _, dev := range found {
		if err := a.teardown(ctx, dev); err != nil {
			return wrap(err)
		}
	}
	return nil
}

// teardown removes one device if its server is dead. The proof is the
// kernel's: it answers ENOTCONN for a connection whose last descriptor is
// closed, and only for such a one. A server that is alive answers, one that
// is stopped or being replaced makes the question wait.
func (a *Attacher) teardown(ctx context.Context, dev loopdev.Device) error {
	path := loopdev.Path(dev.Number)
	_, err := a.child(ctx, dev.Tag, probeDeadline, cmdAlive, path, dev.Tag)
	switch {
	case err == nil:
		return fmt.Errorf("%s is served by another process: %w", path, blockdev.ErrBusy)
	case errors.Is(err, helper.ErrDeadline), errors.Is(err, helper.ErrStuck):
		return fmt.Errorf("%s does not answer and its server is not gone: %w: %w", path, blockdev.ErrBusy, err)
	case errors.Is(err, unix.ENXIO): // loopdev.ErrNotBound, across the process boundary
		return nil
	case !errors.Is(err, unix.ENOTCONN): // loopdev.ErrDead
		return err
	}
	_, err = a.runDetach(ctx, path, dev.Tag)
	return err
}

// runDetach removes a device in a child. flushed is what a failed sync said.
func (a *Attacher) runDetach(ctx context.Context, path, tag string) (flushed string, err error) {
	out, err := a.child(ctx, tag, detachDeadline, cmdDetach, path, tag)
	switch {
	case errors.Is(err, unix.ENXIO):
		err = nil
	case errors.Is(err, unix.EBUSY):
		err = fmt.Errorf("%w: %w", blockdev.ErrBusy, err)
	}
	return strings.TrimSpace(string(out)), err
}
