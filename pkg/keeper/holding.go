package keeper

import (
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

func (h *holding) bytes() (n int64) {
	for _, f := range h.files {
		n += f.bytes
	}
	return n
}

// lost finds a device of h that is not among the files of n.
func (h *holding) lost(n *holding) (int, bool) {
	for i, f := range h.files {
		if f.device && !slices.ContainsFunc(n.files, func(o held) bool { return sameFile(f.fd, o.fd) }) {
			return i, true
		}
	}
	return 0, false
}

// serialOf returns the serial of an open file, 0 if h, which may be nil, has it not.
func (h *holding) serialOf(fd int) uint64 {
	if h == nil {
		return 0
	}
	for _, f := range h.files {
		if sameFile(f.fd, fd) {
			return f.serial
		}
	}
	return 0
}

// sameFile reports whether two descriptors share one open file. Without
// kcmp(2) it cannot know, and says no.
func sameFile(a, b int) bool {
	if a == b {
		return true
	}
	const kcmpFile = 0
	pid := uintptr(os.Getpid())
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, pid, pid, kcmpFile, uintptr(a), uintptr(b), 0)
	return errno == 0 && r == 0
}

// examine makes a holding of what arrived.
func examine(generation uint64, meta []byte, files []int) (*holding, *refusal) {
	h := &holding{generation: generation, meta: meta}
	for i, fd := range files {
		f, r := inspect(i, fd)
		if r != nil {
			return nil, r
		}
		h.files = append(h.files, f)
	}
	return h, nil
}

// inspect says what a descriptor is. It asks no filesystem: an answer could
// take for ever (I-KEEP-9).
func inspect(i, fd int) (held, *refusal) {
	const fixedSize = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	if seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0); err == nil {
		if seals&fixedSize != fixedSize {
			return held{}, refuse(codeInvalid, "file %d is a memfd whose size can change: seal it with F_SEAL_SHRINK and F_SEAL_GROW", i)
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return held{}, refuse(codeInvalid, "file %d: %v", i, err)
		}
		if st.Size > MaxJournal {
			return held{}, refuse(codeInvalid, "file %d has %d bytes of memory, %d are possible", i, st.Size, MaxJournal)
		}
		return held{fd: fd, bytes: st.Size}, nil
	}
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st); err != nil {
		return held{}, refuse(codeInvalid, "file %d: %v", i, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR, unix.S_IFSOCK:
		return held{fd: fd, device: true}, nil
	}
	return held{}, refuse(codeInvalid, "file %d is neither memfd nor character device nor socket (mode %#o)", i, st.Mode)
}
