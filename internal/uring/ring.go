package uring

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrUnavailable: the kernel has no io_uring for this process, or one too old.
var ErrUnavailable = errors.New("io_uring is not available")

// Ring is one io_uring. Only the thread that made it may use it.
type Ring struct {
	fd    int
	rings []byte // both queues, shared with the kernel
	array []byte // the SQEs

	sqes    []sqe
	sqTail  *uint32
	sqMask  uint32
	sqLocal uint32 // our tail; published by Enter
	sqSent  uint32 // up to where the kernel has taken them

	cqes   []cqe
	cqHead *uint32
	cqTail *uint32
	cqMask uint32

	limit waitLimit
}

// waitLimit is struct io_uring_getevents_arg, and what it refers to. It lies on
// the heap, where nothing moves.
type waitLimit struct {
	sigmask     uint64
	sigmaskSize uint32
	_           uint32
	ts          uint64
	time        unix.Timespec
}

const waitLimitSize = 24

// Completion is the outcome of one operation.
type Completion struct {
	Tag uint64
	// Res is what the system call would return: a count, or a negative errno.
	Res int32
}

// New makes a ring whose submission queue takes entries operations between
// two calls of Enter; four times as many may be under way. The calling
// goroutine must be locked to its thread. [ErrUnavailable]: not here.
func New(entries uint32) (*Ring, error) {
	p := params{
		flags:     setupSingleIssuer | setupDeferTaskrun | setupSubmitAll | setupCQSize,
		cqEntries: 4 * entries,
	}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(&p)), 0)
	switch errno {
	case 0:
	case unix.ENOSYS, unix.EPERM, unix.EACCES:
		return nil, fmt.Errorf("io_uring_setup: %w (kernel.io_uring_disabled, a seccomp filter or a kernel without it): %w", errno, ErrUnavailable)
	case unix.EINVAL:
		return nil, fmt.Errorf("io_uring_setup: %w (Linux before 6.1): %w", errno, ErrUnavailable)
	default:
		return nil, fmt.Errorf("io_uring_setup: %w", errno)
	}
	r := &Ring{fd: int(fd)}
	unix.CloseOnExec(r.fd)
	if want := uint32(featSingleMmap | featNoDrop | featCQESkip); p.features&want != want {
		_ = r.Close()
		return nil, fmt.Errorf("io_uring has features %#x, needs %#x (Linux before 6.1): %w", p.features, want, ErrUnavailable)
	}
	if err := r.mmap(&p); err != nil {
		_ = r.Close()
		return nil, err
	}
	return r, nil
}

func (r *Ring) mmap(p *params) (err error) {
	size := max(p.sq.array+p.sqEntries*4, p.cq.cqes+p.cqEntries*uint32(unsafe.Sizeof(cqe{})))
	prot, flags := unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE
	if r.rings, err = unix.Mmap(r.fd, offSQRing, int(size), prot, flags); err != nil {
		return fmt.Errorf("mmap io_uring queues: %w", err)
	}
	r.array, err = unix.Mmap(r.fd, offSQEs, int(p.sqEntries)*int(unsafe.Sizeof(sqe{})), prot, flags)
	if err != nil {
		return fmt.Errorf("mmap io_uring entries: %w", err)
	}
	at := func(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.rings[off])) }
	r.sqTail = at(p.sq.tail)
	r.sqMask = *at(p.sq.mask)
	r.sqes = unsafe.Slice((*sqe)(unsafe.Pointer(&r.array[0])), p.sqEntries)
	r.cqHead, r.cqTail, r.cqMask = at(p.cq.head), at(p.cq.tail), *at(p.cq.mask)
	r.cqes = unsafe.Slice((*cqe)(unsafe.Pointer(&r.rings[p.cq.cqes])), p.cqEntries)
	// Entry i of the queue is always SQE i.
	index := unsafe.Slice(at(p.sq.array), p.sqEntries)
	for i := range index {
		index[i] = uint32(i)
	}
	return nil
}

// Close ends the ring. Operations still under way are cancelled later, by the
// kernel: make sure there are none.
func (r *Ring) Close() error {
	// What is registered is let go now. The kernel would do it too, but some
	// time after the close, and a lock on a file lasts as long as its last user.
	_ = r.register(unregisterFiles, nil, 0)
	_ = r.register(unregisterBuffers, nil, 0)
	if r.array != nil {
		_ = unix.Munmap(r.array)
	}
	if r.rings != nil {
		_ = unix.Munmap(r.rings)
	}
	return unix.Close(r.fd)
}

// Space is how many operations can be queued before Enter must be called.
func (r *Ring) Space() int { return len(r.sqes) - int(r.sqLocal-r.sqSent) }

// Queued is how many operations wait for Enter.
func (r *Ring) Queued() int { return int(r.sqLocal - r.sqSent) }

// next gives the next free entry, cleared. A full queue is submitted first,
// which does not block.
func (r *Ring) next() *sqe {
	for r.Space() == 0 {
		if err := r.Enter(0); err != nil {
			// Only a ring that was closed or shared can answer this for good.
			panic("uring: submit: " + err.Error())
		}
	}
	s := &r.sqes[r.sqLocal&r.sqMask]
	r.sqLocal++
	*s = sqe{}
	return s
}

// Enter submits what is queued, and returns when at least wait completions
// are there to be taken by Next, or after a signal. It publishes completions
// even with wait 0.
func (r *Ring) Enter(wait uint32) error { return r.EnterFor(wait, 0) }

// EnterFor is Enter that also returns after most, unless that is 0.
func (r *Ring) EnterFor(wait uint32, most time.Duration) error {
	atomic.StoreUint32(r.sqTail, r.sqLocal)
	queued := uintptr(r.sqLocal - r.sqSent)
	var n uintptr
	var errno syscall.Errno
	if wait == 0 {
		// Not worth telling the scheduler of: nothing here waits.
		n, _, errno = unix.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), queued, 0, enterGetEvents, 0, 0)
	} else if most > 0 {
		r.limit.time = unix.NsecToTimespec(int64(most))
		r.limit.ts = uint64(uintptr(unsafe.Pointer(&r.limit.time)))
		n, _, errno = unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), queued, uintptr(wait), enterGetEvents|enterExtArg,
			uintptr(unsafe.Pointer(&r.limit)), waitLimitSize)
	} else {
		n, _, errno = unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), queued, uintptr(wait), enterGetEvents, 0, 0)
	}
	switch errno {
	case 0:
		r.sqSent += uint32(n)
		return nil
	case unix.EINTR, unix.EAGAIN, unix.EBUSY, unix.ETIME:
		// Nothing was taken: a signal came, the time is over, the kernel is short of memory, or
		// completions must be taken first. The caller's loop comes again.
		return nil
	}
	return fmt.Errorf("io_uring_enter: %w", errno)
}

// Next takes the next completion, if there is one.
func (r *Ring) Next(c *Completion) bool {
	head := *r.cqHead // only written here
	if head == atomic.LoadUint32(r.cqTail) {
		return false
	}
	e := &r.cqes[head&r.cqMask]
	c.Tag, c.Res = e.userData, e.res
	atomic.StoreUint32(r.cqHead, head+1)
	return true
}

func (r *Ring) register(op uintptr, p unsafe.Pointer, n int) error {
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), op, uintptr(p), uintptr(n), 0, 0)
	if errno != 0 {
		return fmt.Errorf("io_uring_register %d: %w", op, errno)
	}
	return nil
}

// RegisterBuffer makes mem the memory of ReadFixed and WriteFixed: its pages
// are looked up once and not per operation.
func (r *Ring) RegisterBuffer(mem []byte) error {
	iov := unix.Iovec{Base: unsafe.SliceData(mem)}
	iov.SetLen(len(mem))
	return r.register(registerBuffers, unsafe.Pointer(&iov), 1)
}

// RegisterFiles makes fds[i] known as [Fixed](i).
func (r *Ring) RegisterFiles(fds ...int32) error {
	return r.register(registerFiles, unsafe.Pointer(unsafe.SliceData(fds)), len(fds))
}

// UpdateFile makes fd known as [Fixed](i), one of those that RegisterFiles has
// made known, from the next operation that is submitted on. Those under way
// keep their file.
func (r *Ring) UpdateFile(i int, fd int32) error {
	update := struct {
		offset, _ uint32
		fds       uint64
	}{offset: uint32(i), fds: uint64(uintptr(unsafe.Pointer(&fd)))}
	err := r.register(updateFiles, unsafe.Pointer(&update), 1)
	runtime.KeepAlive(&fd)
	return err
}
