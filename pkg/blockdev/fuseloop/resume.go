package fuseloop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/deathpoint"
	"github.com/csi-vhdx/csi-driver-vhdx/internal/loopdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"

	w "github.com/csi-vhdx/csi-driver-vhdx/internal/fusewire"
)

var (
	_ blockdev.Resumer  = (*Attacher)(nil)
	_ blockdev.Releaser = (*Device)(nil)
)

// keep gives what a successor needs to whoever holds it over the death of this
// process.
func (d *Device) keep(c blockdev.Config, agreed params) error {
	n, err := loopdev.Number(d.path)
	if err != nil {
		return err
	}
	loop, err := loopdev.Identify(n)
	if err != nil {
		return fmt.Errorf("note what a successor needs: %w", err)
	}
	k := kept{
		params: agreed, connection: connectionOf(d.fuse), loop: loop,
		blockSize: uint32(c.Image.LogicalSectorSize()), readOnly: c.Image.ReadOnly(), volume: volumeOf(d.id),
	}
	if err := c.Keep(k.encode(), d.fuse); err != nil {
		return fmt.Errorf("keep %s for a successor: %w", d.path, err)
	}
	return nil
}

// connectionOf is the number of the FUSE connection, 0 where the kernel does
// not tell (before Linux 6.14).
func connectionOf(fuse *os.File) uint32 {
	b, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(int(fuse.Fd())))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "fuse_connection:"); ok {
			n, _ := strconv.ParseUint(strings.TrimSpace(v), 10, 32)
			return uint32(n)
		}
	}
	return 0
}

// Resume serves a device whose server is no more. INIT never comes again: meta
// says what it agreed on. The kernel is told to send again what the dead
// server had read and not answered, before anything is read.
func (a *Attacher) Resume(ctx context.Context, c blockdev.Config, meta []byte, files []*os.File) (blockdev.Device, error) {
	wrap := func(err error) error { return fmt.Errorf("resume volume %s: %w", c.ID, err) }
	own, err := takeOver(files)
	if err != nil {
		return nil, wrap(err)
	}
	k, err := resumable(ctx, c, meta)
	if err != nil {
		_ = own.Close()
		return nil, wrap(err)
	}
	c = filled(c)
	tag := tagOf(c.ID)
	if err := a.reserve(tag); err != nil {
		_ = own.Close()
		return nil, wrap(err)
	}
	d := &Device{a: a, id: c.ID, tag: tag, image: c.Image, fuse: own, detach: make(chan struct{}, 1), done: make(chan struct{})}
	if err := d.resume(ctx, c, k); err != nil {
		a.forget(tag, nil)
		return nil, wrap(err)
	}
	a.mu.Lock()
	a.live[tag] = d
	a.mu.Unlock()
	return d, nil
}

func resumable(ctx context.Context, c blockdev.Config, meta []byte) (kept, error) {
	if err := cmpErr(ctx.Err(), check(c)); err != nil {
		return kept{}, err
	}
	k, err := decodeKept(meta)
	if err != nil {
		return kept{}, err
	}
	return k, k.fits(c)
}

func cmpErr(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// takeOver makes the one descriptor one that the Go runtime does not watch: it
// would be woken for every request.
func takeOver(files []*os.File) (*os.File, error) {
	if len(files) != 1 {
		for _, f := range files {
			_ = f.Close()
		}
		return nil, fmt.Errorf("%d descriptors were kept of the device, not 1: %w", len(files), blockdev.ErrUnresumable)
	}
	fuse := files[0]
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
func (d *Device) resume(ctx context.Context, c blockdev.Config, k kept) error {
	if err := d.same(c, k); err != nil {
		_ = d.fuse.Close()
		return err
	}
	d.path = loopdev.Path(k.loop.Number)
	deathpoint.Reach(deathpoint.ResumeTaken)
	s := newSession(int(d.fuse.Fd()), d.tag, c.QueueDepth, c.Image)
	s.maxIO = int64(k.maxIO)
	s.configure(c, &d.a.spills)
	goOn, err := d.startServer(s)
	if err != nil {
		return err
	}
	deathpoint.Reach(deathpoint.ResumeServer)
	if err := resend(int(d.fuse.Fd())); err != nil {
		goOn(false)
		<-d.done
		return err
	}
	deathpoint.Reach(deathpoint.ResumeResent)
	goOn(true)
	deathpoint.Reach(deathpoint.ResumeDone)
	d.stay(ctx)
	d.detach <- struct{}{}
	return nil
}

// stay sees to it that the device does not go when it is closed, as a detach
// that was cut off may have left it. It has been asked to go, so that a failure
// is no error.
func (d *Device) stay(ctx context.Context) {
	n, err := loopdev.Number(d.path)
	if err == nil && loopdev.Leaving(n) {
		_, err = d.a.child(context.WithoutCancel(ctx), d.tag, probeDeadline, cmdStay, d.path, d.tag)
	}
	if err != nil && !errors.Is(err, unix.ENXIO) {
		d.note("%s may go when it is closed next: %v", d.path, err)
	}
}

// same checks that the device is there, is the very one that was kept, and
// fits the connection and the image.
func (d *Device) same(c blockdev.Config, k kept) error {
	found, err := loopdev.Find(d.tag)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return fmt.Errorf("%s of this volume: %w", loopdev.Path(k.loop.Number), blockdev.ErrGone)
	}
	if len(found) > 1 {
		return fmt.Errorf("%d loop devices of this volume: %w", len(found), blockdev.ErrUnresumable)
	}
	now, err := loopdev.Identify(found[0].Number)
	if err != nil {
		return err
	}
	if now != k.loop {
		return fmt.Errorf("the volume's device is now %v and was %v: %w", now, k.loop, blockdev.ErrUnresumable)
	}
	if have := connectionOf(d.fuse); have != k.connection {
		return fmt.Errorf("the descriptor is of FUSE connection %d, the device's is %d: %w", have, k.connection, blockdev.ErrUnresumable)
	}
	if have, image := found[0].Size, c.Image.Size(); have > image {
		return fmt.Errorf("%s has %d bytes, the image only %d: %w", loopdev.Path(k.loop.Number), have, image, blockdev.ErrUnresumable)
	}
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
