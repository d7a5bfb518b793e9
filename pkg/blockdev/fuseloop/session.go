package fuseloop

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"

	w "github.com/csi-vhdx/csi-driver-vhdx/internal/fusewire"
)

// fileID is the node id of the one file.
const fileID = w.RootID + 1

// session is what serving an initialised connection takes. It holds nothing
// that must be closed.
type session struct {
	fd         int    // /dev/fuse, O_NONBLOCK
	name       string // of the one file
	depth      int    // requests at once
	maxIO      int64  // the largest READ or WRITE that INIT allowed
	image      blockdev.Image
	pinner     blockdev.Pinner     // nil: the image has no descriptor
	files      blockdev.FilePinner // nil: it has one for good
	pin        func(write bool, off, n int64) (fileOff int64, pin uint32, ok bool)
	imageFD    int
	align      int64 // what I/O on imageFD must keep, at least 1
	sector     int
	readOnly   bool
	count      *blockdev.Counters
	pause      atomic.Bool  // see blockdev.Config
	pauseLimit atomic.Int64 // ns
	spills     *spills
	limits     atomic.Pointer[blockdev.Limits] // nil: none
	crashing   func()                          // called when serving panics; see Options.Crashing
	// making: the device is being made. LOOP_CONFIGURE syncs, and holds a lock
	// meanwhile that every other attach on this machine waits for: it must not
	// wait for the image's storage.
	making  atomic.Bool
	changed bool // something has been written; only the engine touches it
}

func newSession(fd int, name string, depth int, image blockdev.Image) *session {
	s := &session{
		fd: fd, name: name, depth: depth, maxIO: maxIO, image: image,
		imageFD: -1, align: 1, sector: image.LogicalSectorSize(), readOnly: image.ReadOnly(),
		count: new(blockdev.Counters), spills: new(spills),
	}
	if p, ok := image.(blockdev.Pinner); ok {
		if imageFD, align := p.Descriptor(); imageFD >= 0 {
			s.pinner, s.imageFD, s.align, s.pin = p, imageFD, int64(max(1, align)), p.Pin
			if f, ok := image.(blockdev.FilePinner); ok {
				s.files, s.pin = f, f.PinFile
			}
		}
	}
	return s
}

// configure takes over what the caller of Attach or Resume wants.
func (s *session) configure(c blockdev.Config, o *spills) {
	s.count, s.spills = c.Count, o
	s.setPause(c.Pause, c.PauseLimit)
	s.setLimits(c.Limits)
}

// meta answers what is neither payload nor flush. It encodes the reply's body
// into out and returns its length.
func (s *session) meta(h w.InHeader, args, out []byte) (int, syscall.Errno) {
	switch h.Opcode {
	case w.OpLookup:
		name, err := w.DecodeName(args)
		if err != nil || h.NodeID != w.RootID || name != s.name {
			return 0, unix.ENOENT
		}
		return w.PutEntryOut(out, s.attr(fileID)), 0
	case w.OpGetattr:
		if h.NodeID != w.RootID && h.NodeID != fileID {
			return 0, unix.ENOENT
		}
		return w.PutAttrOut(out, s.attr(h.NodeID)), 0
	case w.OpOpen:
		if h.NodeID != fileID {
			return 0, unix.EISDIR
		}
		return w.PutOpenOut(out, w.FopenDirectIO|w.FopenParallelDirectWrites), 0
	case w.OpStatfs:
		return w.PutStatfsOut(out, uint64(s.image.Size())/page, page), 0
	case w.OpSetattr:
		return 0, unix.EPERM // nobody resizes or owns it from that side
	case w.OpFlush, w.OpRelease, w.OpDestroy, w.OpAccess: // FLUSH is of close(2), not of fsync
		return 0, 0
	}
	return 0, unix.ENOSYS
}

func (s *session) attr(id uint64) w.Attr {
	if id == w.RootID {
		return w.Attr{Ino: id, Mode: unix.S_IFDIR | 0o500, Nlink: 2, Blksize: page}
	}
	mode := uint32(unix.S_IFREG | 0o600)
	if s.readOnly {
		mode = unix.S_IFREG | 0o400
	}
	return w.Attr{Ino: id, Size: uint64(s.image.Size()), Mode: mode, Nlink: 1, Blksize: page}
}

const (
	// loopTags is how many requests a loop device has under way at most.
	loopTags = 128
	// backgroundMargin is room for requests that loop's split into.
	backgroundMargin = 32
	wantFlags        = w.AsyncRead | w.BigWrites | w.AsyncDIO | w.ParallelDirOp | w.MaxPages | w.InitExt | w.HasResend
	needFlags        = w.AsyncDIO | w.MaxPages | w.InitExt
)

// params is what INIT agreed on. It never comes again, so that a successor of
// this process is told; see kept.
type params struct {
	minor uint32
	flags uint64
	maxIO uint32 // the largest READ or WRITE
}

// negotiate answers INIT, the first request of a connection. Until the mount
// exists the descriptor answers EPERM; gaveUp says that it never will.
func negotiate(fd, depth int, maxIO uint32, buf []byte, gaveUp <-chan struct{}) (params, error) {
	for {
		n, err := unix.Read(fd, buf)
		switch {
		case err == nil:
			return answerInit(fd, depth, maxIO, buf[:n])
		case errors.Is(err, unix.EPERM), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOENT):
		case errors.Is(err, unix.ENODEV): // it was made, and is gone again
			return params{}, errGaveUp
		default:
			return params{}, fmt.Errorf("read INIT from /dev/fuse: %w", err)
		}
		select {
		case <-gaveUp:
			return params{}, errGaveUp
		case <-time.After(100 * time.Microsecond):
		}
	}
}

var errGaveUp = errors.New("no mount was made")

func answerInit(fd, depth int, maxIO uint32, msg []byte) (params, error) {
	h, err := w.DecodeInHeader(msg)
	if err != nil {
		return params{}, err
	}
	if h.Opcode != w.OpInit {
		return params{}, fmt.Errorf("first FUSE request is operation %d, not INIT", h.Opcode)
	}
	in, err := w.DecodeInitIn(msg[w.SizeInHeader:])
	if err != nil {
		return params{}, err
	}
	p := params{minor: min(in.Minor, w.KernelMinorVersion), flags: in.Flags & wantFlags, maxIO: maxIO}
	if in.Major != w.KernelVersion || in.Minor < w.MinMinorVersion || in.Flags&needFlags != needFlags {
		return params{}, fmt.Errorf("kernel speaks FUSE %d.%d with flags %#x, needs %d.%d and %#x (Linux 5.17): %w",
			in.Major, in.Minor, in.Flags, w.KernelVersion, w.MinMinorVersion, needFlags, blockdev.ErrUnavailable)
	}
	background := uint16(max(depth, loopTags) + backgroundMargin)
	out := make([]byte, w.SizeOutHeader+w.SizeInitOut)
	n := w.InitOut{
		Minor: p.minor, MaxReadahead: in.MaxReadahead, Flags: p.flags,
		MaxBackground: background, CongestionThreshold: background,
		MaxWrite: p.maxIO, MaxPages: uint16(p.maxIO / page),
	}.Put(out[w.SizeOutHeader:])
	w.PutOutHeader(out, h.Unique, 0, n)
	_, err = unix.Write(fd, out)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) { // its mount has gone meanwhile
		return params{}, errGaveUp
	}
	if err != nil {
		return params{}, fmt.Errorf("answer INIT: %w", err)
	}
	return p, nil
}

const fuseSysctls = "/proc/sys/fs/fuse"

// timeouts refuses a kernel that aborts a connection whose server pauses.
func timeouts(dir string) error {
	for _, name := range []string{"default_request_timeout", "max_request_timeout"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // Linux before 6.15 has no such limit
		}
		if err != nil {
			return fmt.Errorf("read limit of FUSE requests: %w", err)
		}
		if v := strings.TrimSpace(string(b)); v != "0" {
			return fmt.Errorf("sysctl fs.fuse.%s is %s: the kernel would abort a device whose server pauses for so many seconds; set it to 0 on this node: %w",
				name, v, blockdev.ErrUnavailable)
		}
	}
	return nil
}
