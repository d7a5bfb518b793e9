package fuseloop

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/deathpoint"
	"github.com/csi-vhdx/csi-driver-vhdx/internal/helper"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
)

// maker is the child that makes a device; see childAttach.
type maker struct {
	link  *os.File      // to the child; reads end with it
	ended chan struct{} // closed after err is set
	err   error
}

// startMaker starts the child. It returns when the child has its descriptors,
// or cannot be started.
func (d *Device) startMaker(ctx context.Context, image blockdev.Image) (*maker, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket to the helper: %w", err)
	}
	m := &maker{link: os.NewFile(uintptr(pair[0]), "link"), ended: make(chan struct{})}
	theirs := os.NewFile(uintptr(pair[1]), "link")
	args := attachArgs{
		tag: d.tag, blockSize: image.LogicalSectorSize(), readOnly: image.ReadOnly(), maxIO: d.a.o.maxIO, fault: d.a.o.fault,
	}
	started := make(chan struct{})
	call := helper.Call{
		Name: cmdAttach, Args: args.strings(), Self: true, Deadline: attachDeadline,
		Files: []*os.File{d.fuse, theirs}, Started: func() { close(started) },
	}
	go func() {
		_, m.err = d.a.run(ctx, d.tag, call)
		_ = m.link.Close() // a child that is stuck keeps its end open
		close(m.ended)
	}()
	// The descriptors may be closed only after the child has them.
	select {
	case <-started:
	case <-m.ended:
	}
	_ = theirs.Close()
	return m, nil
}

// device waits until the child has made the device.
func (m *maker) device() (string, error) {
	b := make([]byte, 64)
	n, err := m.link.Read(b)
	if err != nil || n == 0 {
		<-m.ended
		return "", unavailable(cmpErr(m.err, err, errGaveUp))
	}
	return string(b[:n]), nil
}

// settle lets the device stay and waits for the end of the child.
func (m *maker) settle() error {
	_, err := m.link.Write([]byte{1})
	<-m.ended
	return cmpErr(m.err, err)
}

// giveUp ends a child that has not settled the device, and with it the device.
func (m *maker) giveUp() {
	_ = m.link.Close()
	<-m.ended
}

// mount makes the device in a child while this process answers the child's
// requests: the first of them here, the others by the server. It sets d.path.
func (d *Device) mount(ctx context.Context, c blockdev.Config, goOn func(bool)) error {
	m, err := d.startMaker(ctx, c.Image)
	if err != nil {
		return err
	}
	agreed, err := negotiate(int(d.fuse.Fd()), c.QueueDepth, d.a.o.maxIO, make([]byte, dataAt+mostIO), m.ended)
	deathpoint.Reach(deathpoint.AttachNegotiated)
	keep := c.Keep != nil
	if err == nil && keep {
		keep, err = d.keepable(agreed)
	}
	err = failAt(d.a.o.fault, stepNegotiate, err)
	if errors.Is(err, errGaveUp) {
		<-m.ended
		return unavailable(cmpErr(m.err, err))
	}
	if err != nil {
		goOn(false) // closes the connection, which ends the child's waits
		m.giveUp()
		return err
	}
	goOn(true)
	if d.path, err = m.device(); err != nil {
		return err
	}
	deathpoint.Reach(deathpoint.AttachDone)
	if keep {
		err = d.keep(c, agreed)
		deathpoint.Reach(deathpoint.AttachKept)
	}
	if err = failAt(d.a.o.fault, stepKept, err); err != nil {
		m.giveUp()
		return err
	}
	return m.settle()
}

// unavailable marks the errors of a kernel or a container that lacks what
// the backend needs.
func unavailable(err error) error {
	for _, errno := range []error{unix.EPERM, unix.EACCES, unix.ENOSYS, unix.ENODEV} {
		if errors.Is(err, errno) {
			return fmt.Errorf("%w: %w", err, blockdev.ErrUnavailable)
		}
	}
	return err
}
