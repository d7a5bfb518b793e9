package uring

import "unsafe"

// FD is a descriptor: a plain one, or [Fixed].
type FD int32

// Fixed is the i-th of RegisterFiles.
func Fixed(i int) FD { return FD(-1 - i) }

// Every operation below is queued; Enter submits it and its completion
// carries tag.

func (r *Ring) op(opcode uint8, fd FD, tag uint64) *sqe {
	s := r.next()
	s.opcode, s.userData, s.fd = opcode, tag, int32(fd)
	if fd < 0 {
		s.fd, s.flags = int32(-1-fd), sqeFixedFile
	}
	return s
}

func (s *sqe) buffer(p []byte, off int64) {
	s.addr = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p))))
	s.len = uint32(len(p))
	s.off = uint64(off)
}

// NoOffset is the offset of a descriptor that has none.
const NoOffset = int64(-1)

// Nop does nothing.
func (r *Ring) Nop(tag uint64) { r.op(opNop, 0, tag) }

// Read reads into p.
func (r *Ring) Read(fd FD, p []byte, off int64, tag uint64) { r.op(opRead, fd, tag).buffer(p, off) }

// Write writes p.
func (r *Ring) Write(fd FD, p []byte, off int64, tag uint64) { r.op(opWrite, fd, tag).buffer(p, off) }

// WriteQuiet writes p and completes only if it fails. p is free once Enter
// has submitted it, if fd never blocks.
func (r *Ring) WriteQuiet(fd FD, p []byte, off int64, tag uint64) {
	s := r.op(opWrite, fd, tag)
	s.buffer(p, off)
	s.flags |= sqeCQESkipSuccess
}

// ReadFixed reads into p, which lies in the registered buffer.
func (r *Ring) ReadFixed(fd FD, p []byte, off int64, tag uint64) {
	r.op(opReadFixed, fd, tag).buffer(p, off)
}

// WriteFixed writes p, which lies in the registered buffer.
func (r *Ring) WriteFixed(fd FD, p []byte, off int64, tag uint64) {
	r.op(opWriteFixed, fd, tag).buffer(p, off)
}

// Fdatasync makes what has been written durable, and the size.
func (r *Ring) Fdatasync(fd FD, tag uint64) { r.op(opFsync, fd, tag).opFlags = fsyncDatasync }

// Fallocate is fallocate(2).
func (r *Ring) Fallocate(fd FD, mode uint32, off, n int64, tag uint64) {
	s := r.op(opFallocate, fd, tag)
	s.off, s.addr, s.len = uint64(off), uint64(n), mode
}

// CancelAll cancels everything under way; what was cancelled completes with
// ECANCELED, then this one, with the number of those it found.
func (r *Ring) CancelAll(tag uint64) {
	r.op(opAsyncCancel, 0, tag).opFlags = cancelAll | cancelAny
}
