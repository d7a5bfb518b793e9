package fuseloop

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/uring"
)

// blockingThreads is how many requests are served at once without a ring.
const blockingThreads = 8

// threads serves a session with one goroutine per request under way, where
// io_uring is not allowed. All I/O goes through the image's methods.
type threads struct {
	s    *session
	mem  []byte
	stop int // eventfd: readable for ever once set

	wg   sync.WaitGroup
	once sync.Once
	end  error
}

func newThreads(s *session) (*threads, error) {
	if err := unix.SetNonblock(s.fd, true); err != nil {
		return nil, fmt.Errorf("make /dev/fuse non-blocking: %w", err)
	}
	mem, err := uring.Map(blockingThreads * bigSize)
	if err != nil {
		return nil, err
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		_ = uring.Unmap(mem)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	return &threads{s: s, mem: mem, stop: stop}, nil
}

func (t *threads) close() {
	_ = unix.Close(t.stop)
	_ = uring.Unmap(t.mem)
}

func (t *threads) quit() { t.ended(errStopped) }

// ended stops every goroutine after the request it is at.
func (t *threads) ended(err error) {
	t.once.Do(func() {
		t.end = err
		var one [8]byte
		binary.NativeEndian.PutUint64(one[:], 1)
		_, _ = unix.Write(t.stop, one[:])
	})
}

// run serves until the connection ends or quit.
func (t *threads) run() error {
	for i := range blockingThreads {
		t.wg.Go(func() { t.serve(t.mem[i*bigSize : (i+1)*bigSize]) })
	}
	t.wg.Wait()
	return t.end
}

func (t *threads) serve(buf []byte) {
	r := &request{buf: buf}
	poll := []unix.PollFd{{Fd: int32(t.s.fd), Events: unix.POLLIN}, {Fd: int32(t.stop), Events: unix.POLLIN}}
	for {
		n, err := unix.Read(t.s.fd, buf[messageAt:])
		switch {
		case err == nil:
			if err := t.handle(buf[messageAt:messageAt+n], r); err != nil {
				t.ended(err)
				return
			}
		case errors.Is(err, unix.EAGAIN):
			poll[0].Revents, poll[1].Revents = 0, 0
			_, _ = unix.Poll(poll, -1) // EINTR: come again
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOENT):
		case errors.Is(err, unix.ENODEV):
			t.ended(errUnmounted)
			return
		default:
			t.ended(fmt.Errorf("read /dev/fuse: %w", err))
			return
		}
		if poll[1].Revents != 0 {
			return
		}
	}
}

func (t *threads) handle(msg []byte, r *request) error {
	class, err := t.s.decode(msg, r)
	if err != nil {
		return fmt.Errorf("read /dev/fuse: %w", err)
	}
	if class == classQuiet {
		return nil
	}
	if class != classMeta {
		t.s.execute(r)
	}
	if _, err := unix.Write(t.s.fd, r.reply()); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("write reply to /dev/fuse: %w", err)
	}
	return nil
}
