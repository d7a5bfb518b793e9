package fuseloop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/deathpoint"
	"github.com/csi-vhdx/csi-driver-vhdx/internal/loopdev"
	"github.com/csi-vhdx/csi-driver-vhdx/internal/uring"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
)

var (
	errUnmounted = errors.New("the kernel has ended the connection: the device was removed or aborted by somebody else")
	errStopped   = errors.New("serving was stopped")
)

// Device is one fuseloop device.
type Device struct {
	a     *Attacher
	id    string
	tag   string
	image blockdev.Image
	path  string
	fuse  *os.File // /dev/fuse; closed with done

	detach chan struct{} // holds one token: the right to detach or resize

	mu        sync.Mutex // guards what follows
	srv       *engine    // nil when it has been closed
	watch     watch
	detaching bool // the end of the connection is wanted
	err       error
	done      chan struct{} // closed after err is set and everything is given back
}

var _ blockdev.Device = (*Device)(nil)

// Path of the device node.
func (d *Device) Path() string { return d.path }

// Done is closed when serving has ended.
func (d *Device) Done() <-chan struct{} { return d.done }

// Err says why serving has ended; nil after Detach, and while it goes on.
func (d *Device) Err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

func (d *Device) note(format string, args ...any) { d.a.o.Note(d.id, fmt.Sprintf(format, args...)) }

// attach makes the device, or undoes what it has done of it.
func (d *Device) attach(ctx context.Context, c blockdev.Config) error {
	if err := d.a.preflight(); err != nil {
		return err
	}
	if err := d.openFuse(); err != nil {
		return err
	}
	deathpoint.Reach(deathpoint.AttachOpened)
	s := newSession(int(d.fuse.Fd()), d.tag, c.QueueDepth, c.Image)
	s.maxIO = int64(d.a.o.maxIO)
	s.configure(c, &d.a.spills)
	s.making.Store(true)
	defer s.making.Store(false)
	goOn, err := d.startServer(s)
	if err != nil {
		return err
	}
	deathpoint.Reach(deathpoint.AttachServer)
	err = d.mount(ctx, c, goOn)
	if err = failAt(d.a.o.fault, stepAttached, err); err != nil {
		d.undo(context.WithoutCancel(ctx), goOn)
		return err
	}
	d.detach <- struct{}{}
	return nil
}

// openFuse opens the connection. Not by os.OpenFile: what that opens the Go
// runtime watches too, and would be woken for every request.
func (d *Device) openFuse() error {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/fuse: %w: %w", err, blockdev.ErrUnavailable)
	}
	d.fuse = os.NewFile(uintptr(fd), "/dev/fuse")
	if err := failAt(d.a.o.fault, stepOpenFuse, nil); err != nil {
		_ = d.fuse.Close()
		return err
	}
	return nil
}

// startServer makes the server on a thread of its own. It begins to serve
// when goOn is called with true and ends when it is called with false. The
// goroutine closes the connection and d.done at its end.
func (d *Device) startServer(s *session) (goOn func(bool), err error) {
	s.crashing = func() { d.a.o.Crashing(d.id) }
	ready := make(chan error, 1)
	start := make(chan bool, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and takes its
		// flags with it.
		runtime.LockOSThread()
		defer close(d.done)
		defer func() { _ = d.fuse.Close() }()
		srv, err := d.newServer(s)
		ready <- err
		if err != nil {
			return
		}
		d.mu.Lock()
		d.srv = srv
		d.mu.Unlock()
		err = errStopped
		if <-start {
			s.crashes(func() { err = srv.run() })
		}
		d.finish(srv, err)
	}()
	if err := <-ready; err != nil {
		<-d.done
		return nil, err
	}
	var once sync.Once
	return func(serve bool) { once.Do(func() { start <- serve }) }, nil
}

// finish closes the server and notes why it ended.
func (d *Device) finish(srv *engine, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.srv = nil
	srv.close()
	if errors.Is(err, errUnmounted) && d.detaching || errors.Is(err, errStopped) {
		err = nil
	}
	d.err = err
}

// ended reports whether serving has ended.
func (d *Device) ended() bool {
	select {
	case <-d.done:
		return true
	default:
		return false
	}
}

// engineNice is the priority of the engine's thread alone.
const engineNice = -20

func (d *Device) newServer(s *session) (*engine, error) {
	if err := blockdev.SetIOFlusher(); err != nil {
		d.note("%v", err)
	}
	// As the kernel's own loop threads once ran: who waits for a block device
	// waits for this thread too. Without the right to it, it goes without.
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, engineNice)
	e, err := newEngine(s, d.a.o.NoRing)
	if errors.Is(err, uring.ErrUnavailable) {
		d.note("serving with blocking threads, which is slower: %v", err)
		e, err = newEngine(s, true)
	}
	if err != nil {
		return nil, err
	}
	if err := failAt(d.a.o.fault, stepEngine, nil); err != nil {
		e.close()
		return nil, err
	}
	return e, nil
}

// undo removes what a failed attach may have left: a child that was killed
// right after it settled the device leaves it, so it is looked for.
func (d *Device) undo(ctx context.Context, goOn func(bool)) {
	d.mu.Lock()
	d.detaching = true
	d.mu.Unlock()
	if found, err := loopdev.Find(d.tag); err == nil {
		for _, dev := range found {
			ctx, cancel := context.WithTimeout(ctx, attachDeadline)
			_, _ = d.a.runDetach(ctx, loopdev.Path(dev.Number), d.tag)
			cancel()
		}
	}
	goOn(false)
	d.quit()
	<-d.done
}

func (d *Device) quit() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.srv != nil {
		d.srv.quit()
	}
}

// hold takes the right to change the device.
func (d *Device) hold(ctx context.Context) error {
	select {
	case <-d.detach:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Detach removes the device and waits until serving has ended.
func (d *Device) Detach(ctx context.Context) error {
	wrap := func(err error) error { return fmt.Errorf("detach %s of volume %s: %w", d.path, d.id, err) }
	if err := d.hold(ctx); err != nil {
		return wrap(err)
	}
	defer func() { d.detach <- struct{}{} }()
	if !d.a.owns(d) {
		return nil // detached before
	}
	if err := d.pausedErr(); err != nil {
		return wrap(err)
	}
	d.setDetaching(true)
	deathpoint.Reach(deathpoint.DetachBegun)
	whole, end := d.unlessPaused(ctx)
	flushed, err := d.a.runDetach(whole, d.path, d.tag)
	if err != nil && errors.Is(context.Cause(whole), blockdev.ErrPaused) {
		err = fmt.Errorf("%w: %w", context.Cause(whole), err)
	}
	end()
	if err != nil {
		d.stay(ctx)
		d.setDetaching(false)
		return wrap(err)
	}
	deathpoint.Reach(deathpoint.DetachRemoved)
	if flushed != "" {
		d.note("the last flush failed: %s", flushed)
	}
	select {
	case <-d.done:
	case <-ctx.Done():
		return wrap(ctx.Err()) // the device is gone, requests are still being finished; come again
	}
	d.a.forget(d.tag, d)
	return nil
}

func (d *Device) setDetaching(on bool) {
	d.mu.Lock()
	d.detaching = on
	d.mu.Unlock()
}

// quiet lets so few requests begin that hardly one ends while a child asks.
var quiet = blockdev.Limits{IOPS: 10}

// askQuietly has the kernel ask for the file's attributes while next to nothing
// is written: it drops an answer that a write's end overtakes. On Linux before
// 6.16 the device's size hangs on it.
func (d *Device) askQuietly(ctx context.Context) error {
	d.mu.Lock()
	srv := d.srv
	d.mu.Unlock()
	if srv != nil {
		was := srv.s.limits.Swap(&quiet)
		defer func() {
			srv.s.limits.CompareAndSwap(&quiet, was) // they may have been changed meanwhile
			srv.waker.Wake()
		}()
	}
	_, err := d.a.child(ctx, d.tag, attachDeadline, cmdAlive, d.path, d.tag)
	return err
}

// Resize makes the device as large as the image.
func (d *Device) Resize(ctx context.Context) error {
	wrap := func(err error) error { return fmt.Errorf("resize %s of volume %s: %w", d.path, d.id, err) }
	if err := d.hold(ctx); err != nil {
		return wrap(err)
	}
	defer func() { d.detach <- struct{}{} }()
	n, err := loopdev.Number(d.path)
	if err != nil {
		return wrap(err)
	}
	want := d.image.Size()
	if err := d.askQuietly(ctx); err != nil {
		return wrap(err)
	}
	if _, err := d.a.child(ctx, d.tag, attachDeadline, cmdResize, d.path, d.tag, strconv.FormatInt(want, 10)); err != nil {
		return wrap(err)
	}
	if got := loopdev.Size(n); got < want {
		return wrap(fmt.Errorf("it stays at %d bytes, the image has %d", got, want))
	}
	return nil
}
