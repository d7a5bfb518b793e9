package fuseloop

import (
	"errors"
	"io"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/deathpoint"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"

	w "github.com/csi-vhdx/csi-driver-vhdx/internal/fusewire"
)

const (
	page = 4096
	// maxIO is the largest READ or WRITE of a new connection. The kernel would
	// do mostIO, but in smaller pieces a large request is copied while the piece
	// before it is on the medium. A connection keeps what INIT said for life, so
	// that of one that is resumed may be another.
	maxIO  = 256 << 10
	mostIO = 1 << 20
	// dataAt is where the data of a request lies in its buffer: headers come
	// right before it, so that a message is one stretch of memory and its
	// data begins on a page.
	dataAt = page
	// messageAt is where a read of /dev/fuse begins: WRITE's data then falls
	// on dataAt.
	messageAt = dataAt - w.SizeInHeader - w.SizeWriteIn
)

// request is one FUSE request from its arrival to its reply. See I-FL-1.
type request struct {
	unique uint64
	op     w.Opcode
	off, n int64
	mode   uint32 // of FALLOCATE
	buf    []byte // room for headers, then the data at dataAt
	meta   int    // bytes of reply at headerAt+SizeOutHeader, for what is neither READ nor WRITE
	errno  syscall.Errno
	got    int64 // of READ: bytes of data

	// Only the engine uses these.
	big     int32 // index of the big buffer it holds, or none
	pin     uint32
	fileOff int64
	state   state
	narrow  bool      // changes less than whole aligned units; I-FL-3
	seq     uint64    // order of arrival
	began   time.Time // of FSYNC: its arrival

	probe    bool          // ask whether there is space before it is tried
	paused   bool          // has waited for space since pausedAt
	pausedAt time.Duration // by the engine's clock
	spilled  []byte        // memory of its own that it has instead of a big buffer
}

type class uint8

const (
	classQuiet class = iota // no reply
	classMeta               // answered already
	classData               // READ, WRITE
	classSlow               // FSYNC, FALLOCATE
)

// data is the memory of the request's payload.
func (r *request) data() []byte { return r.buf[dataAt : dataAt+r.n] }

// kind is what the request counts as.
func (r *request) kind() blockdev.Kind {
	switch {
	case r.op == w.OpRead:
		return blockdev.Read
	case r.op == w.OpWrite:
		return blockdev.Write
	case r.op == w.OpFsync:
		return blockdev.Flush
	case r.mode&w.FallocPunchHole != 0:
		return blockdev.Discard
	}
	return blockdev.Zero
}

// reply encodes the answer and returns the message to write to /dev/fuse.
func (r *request) reply() []byte {
	if r.op == w.OpRead && r.errno == 0 {
		msg := r.buf[dataAt-w.SizeOutHeader : dataAt+r.got]
		w.PutOutHeader(msg, r.unique, 0, int(r.got))
		return msg
	}
	n := r.meta
	if r.errno != 0 {
		n = 0
	} else if r.op == w.OpWrite {
		n = w.PutWriteOut(r.buf[w.SizeOutHeader:], uint32(r.n))
	}
	w.PutOutHeader(r.buf, r.unique, r.errno, n)
	return r.buf[:w.SizeOutHeader+n]
}

// decode takes the message apart into r, and answers what needs no image. The
// message may share r.buf's memory only from messageAt on. r.buf must be set
// for the reply of classMeta.
func (s *session) decode(msg []byte, r *request) (class, error) {
	h, err := w.DecodeInHeader(msg)
	if err != nil {
		return classQuiet, err
	}
	r.unique, r.op, r.errno, r.meta, r.got, r.narrow = h.Unique, h.Opcode, 0, 0, 0, false
	r.off, r.n, r.mode, r.probe = 0, 0, 0, false
	args := msg[w.SizeInHeader:]
	switch h.Opcode {
	case w.OpForget, w.OpBatchForget, w.OpInterrupt:
		return classQuiet, nil
	case w.OpRead, w.OpWrite:
		in, err := w.DecodeReadIn(args)
		if err != nil {
			return classQuiet, err
		}
		r.off, r.n = int64(in.Offset), int64(in.Size)
		if !s.dataFits(r, len(args)-w.SizeWriteIn) {
			r.errno = unix.EINVAL
			return classMeta, nil
		}
		s.changed = s.changed || h.Opcode == w.OpWrite
		return classData, nil
	case w.OpFsync:
		if s.making.Load() && !s.changed {
			return classMeta, nil // there is nothing to sync
		}
		return classSlow, nil
	case w.OpFallocate:
		in, err := w.DecodeFallocateIn(args)
		if err != nil {
			return classQuiet, err
		}
		r.off, r.n, r.mode = int64(in.Offset), int64(in.Length), in.Mode
		s.changed = true
		return classSlow, nil
	}
	r.meta, r.errno = s.meta(h, args, r.buf[w.SizeOutHeader:])
	return classMeta, nil
}

// dataFits checks a READ or a WRITE that came with sent bytes of data.
func (s *session) dataFits(r *request, sent int) bool {
	if r.off < 0 || r.n > s.maxIO {
		return false
	}
	return r.op == w.OpRead || int64(sent) == r.n
}

// execute does the request through the image's methods. It may block.
func (s *session) execute(r *request) {
	if r.probe && s.full() {
		r.errno = unix.ENOSPC
		return
	}
	switch r.op {
	case w.OpRead:
		r.errno = s.read(r)
	case w.OpWrite:
		r.errno = s.final(s.write(r))
	case w.OpFallocate:
		r.errno = s.final(s.fallocate(r))
		deathpoint.Reach(deathpoint.ZeroDone)
	default: // FSYNC
		deathpoint.Reach(deathpoint.FlushBegun)
		r.errno = errnoOf(s.image.Flush())
		deathpoint.Reach(deathpoint.FlushDone)
	}
}

// full reports whether the storage is known to have no space.
func (s *session) full() bool {
	p, ok := s.image.(blockdev.Prober)
	return ok && p.Full()
}

// final turns want of space into EIO where it is the reason why the image takes
// no writes any more: no space will help.
func (s *session) final(errno syscall.Errno) syscall.Errno {
	if p, ok := s.image.(blockdev.Poisoner); ok && noSpace(errno) && p.Poisoned() != nil {
		return unix.EIO
	}
	return errno
}

func (s *session) read(r *request) syscall.Errno {
	if r.n = min(r.n, s.image.Size()-r.off); r.n <= 0 {
		r.n, r.got = 0, 0
		return 0
	}
	n, err := s.image.ReadAt(r.data(), r.off)
	if int64(n) == r.n {
		err = nil // io.EOF too
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // inside the size it claims
	}
	r.got = int64(n)
	return errnoOf(err)
}

func (s *session) write(r *request) syscall.Errno {
	if s.readOnly {
		return unix.EROFS
	}
	if r.n > s.image.Size()-r.off {
		return unix.EINVAL // loop never asks for it
	}
	if r.n == 0 {
		return 0
	}
	n, err := s.image.WriteAt(r.data(), r.off)
	if err == nil && int64(n) != r.n {
		err = io.ErrShortWrite
	}
	return errnoOf(err)
}

func (s *session) fallocate(r *request) syscall.Errno {
	sector := int64(s.sector)
	switch {
	case s.readOnly:
		return unix.EROFS
	case r.off < 0 || r.n <= 0 || r.n > s.image.Size()-r.off || r.off%sector != 0 || r.n%sector != 0:
		return unix.EINVAL
	case r.mode == w.FallocPunchHole|w.FallocKeepSize:
		return errnoOf(s.image.Discard(r.off, r.n))
	case r.mode|w.FallocKeepSize == w.FallocZeroRange|w.FallocKeepSize:
		return errnoOf(s.image.WriteZeroes(r.off, r.n))
	}
	return unix.EOPNOTSUPP
}

// errnoOf is the one place where an image's error becomes the kernel's.
func errnoOf(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	errno, ok := errors.AsType[syscall.Errno](err)
	switch {
	case !ok, errno <= 0, errno >= 512, errno == unix.ENOSYS: // I-FL-7
		return unix.EIO
	case errno == unix.EAGAIN, errno == unix.EINTR:
		return unix.EIO // nobody tries again on a block device
	}
	return errno
}
