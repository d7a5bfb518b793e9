package fuseloop

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/loopdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"

	w "github.com/csi-vhdx/csi-driver-vhdx/internal/fusewire"
)

var (
	_ blockdev.Resumer  = (*Attacher)(nil)
	_ blockdev.Releaser = (*Device)(nil)
)

// keep lends the connection to whoever holds it over the death of this process.
// It is of use only where the kernel sends requests in flight again.
func (d *Device) keep(lend func(*os.File) error, agreed params) error {
	if agreed.flags&w.HasResend == 0 {
		return fmt.Errorf("this kernel does not send requests again that a dead server has read (Linux 6.9 does): a device would hang over the death of the plugin: %w", blockdev.ErrUnavailable)
	}
	return lend(d.fuse)
}

// Resume serves a device whose server is no more. INIT never comes again, and
// nothing of what it agreed on is needed to serve. The kernel is told to send
// again what the dead server had read and not answered, before anything is
// read. fuse is closed on error too.
func (a *Attacher) Resume(ctx context.Context, c blockdev.Config, fuse *os.File) (blockdev.Device, error) {
	wrap := func(err error) error { return fmt.Errorf("resume volume %s: %w", c.ID, err) }
	own, err := takeOver(fuse)
	if err != nil {
		return nil, wrap(err)
	}
	if err := cmpErr(ctx.Err(), check(c)); err != nil {
		_ = own.Close()
		return nil, wrap(err)
	}
	if c.QueueDepth == 0 {
		c.QueueDepth = defaultDepth
	}
	tag := tagOf(c.ID)
	if err := a.reserve(tag); err != nil {
		_ = own.Close()
		return nil, wrap(err)
	}
	d := &Device{a: a, id: c.ID, tag: tag, image: c.Image, fuse: own, detach: make(chan struct{}, 1), done: make(chan struct{})}
	if err := d.resume(c); err != nil {
		a.forget(tag, nil)
		return nil, wrap(err)
	}
	a.mu.Lock()
	a.live[tag] = d
	a.mu.Unlock()
	return d, nil
}

func cmpErr(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// takeOver makes the descriptor one that the Go runtime does not watch: it
// would be woken for every request.
func takeOver(fuse *os.File) (*os.File, error) {
	fd := -1
	raw, err := fuse.SyscallConn()
	if err == nil {
		var dup error
		err = raw.Control(func(have uintptr) { fd, dup = unix.FcntlInt(have, unix.F_DUPFD_CLOEXEC, 0) })
		err = cmpErr(err, dup)
	}
	_ = fuse.Close()
	if err != nil {
		return nil, fmt.Errorf("take the connection over: %w", err)
	}
	// os.NewFile would watch a non-blocking descriptor; the engine makes it so.
	if err := unix.SetNonblock(fd, false); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("take the connection over: %w", err)
	}
	return os.NewFile(uintptr(fd), "/dev/fuse"), nil
}

// resume closes the connection on error.
func (d *Device) resume(c blockdev.Config) error {
	found, err := loopdev.Find(d.tag)
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("%d loop devices of this volume: %w", len(found), blockdev.ErrGone)
	}
	if err != nil {
		_ = d.fuse.Close()
		return err
	}
	d.path = loopdev.Path(found[0].Number)
	goOn, err := d.startServer(newSession(int(d.fuse.Fd()), d.tag, c.QueueDepth, c.Image))
	if err != nil {
		return err
	}
	if err := resend(int(d.fuse.Fd())); err != nil {
		goOn(false)
		<-d.done
		return err
	}
	d.detach <- struct{}{}
	goOn(true)
	return nil
}

func resend(fd int) error {
	b := make([]byte, w.SizeNotify)
	if _, err := unix.Write(fd, b[:w.PutNotifyResend(b)]); err != nil {
		return fmt.Errorf("have requests in flight sent again: %w", err)
	}
	return nil
}

// Release ends serving and leaves the device to a successor.
func (d *Device) Release(ctx context.Context) error {
	d.quit()
	select {
	case <-d.done:
		d.a.forget(d.tag, d)
		return nil
	case <-ctx.Done():
		return fmt.Errorf("release %s of volume %s: %w", d.path, d.id, ctx.Err())
	}
}
