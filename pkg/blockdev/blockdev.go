// Package blockdev is the contract between an image and the kernel: an
// [Attacher] makes a block device that the calling process itself serves from
// an [Image].
//
// Invariants, which devtest checks for every backend:
//
//	I-DEV-1  A completed flush covers every write answered before the flush was sent.
//	I-DEV-2  Detach returns only when no request is in flight and none can come.
//	I-DEV-3  Never two servers on one device.
//	I-DEV-4  After a failed Attach nothing is left: no device, connection, descriptor or goroutine.
//	I-DEV-5  No thread of a serving process makes a call that can wait on a device it serves.
//	I-DEV-6  Serving a request allocates no memory that the request itself may be needed to free.
package blockdev

import (
	"context"
	"errors"
	"io"
	"os"
	"time"
)

// Image is what a device serves. All methods may be called from several
// goroutines at once. Offsets and lengths are multiples of LogicalSectorSize.
type Image interface {
	io.ReaderAt
	io.WriterAt
	// WriteZeroes makes the range read zero and keeps its space where the
	// image has space for it.
	WriteZeroes(off, n int64) error
	// Discard makes the range read zero; its space may be freed.
	Discard(off, n int64) error
	// Flush makes every write that has returned survive a power cut.
	Flush() error
	// Size in bytes. It may grow while the image is served; see Device.Resize.
	Size() int64
	LogicalSectorSize() int
	PhysicalSectorSize() int
	ReadOnly() bool
}

// Pinner is an Image whose payload a backend may read and write itself, on
// the image's own descriptor.
type Pinner interface {
	// Pin says where in the image file a range lies, if it lies in one
	// allocated stretch. It never blocks, allocates or does I/O: ok false
	// means that the request goes through ReadAt or WriteAt. The range stays
	// where it is until Unpin(pin).
	Pin(write bool, off, n int64) (fileOff int64, pin uint32, ok bool)
	Unpin(pin uint32)
	// Descriptor is the one all I/O of the image uses; align is what offset,
	// length and memory of I/O on it must be a multiple of (1: anything). A
	// negative fd means that there is none and Pin never answers ok.
	Descriptor() (fd int, align int)
}

// FilePinner is a Pinner whose file may be replaced by another while it is
// served, as by a snapshot. Who uses PinFile never calls Pin; Unpin serves both.
type FilePinner interface {
	Pinner
	// PinFile is Pin in whichever file the image has now: pin>>1 is its
	// number, which begins at 0, that of Descriptor, and never goes down. All
	// that was pinned in a file before the last one is done when a number
	// appears: no more than two files are in use at once.
	PinFile(write bool, off, n int64) (fileOff int64, pin uint32, ok bool)
	// PinnedDescriptor is Descriptor for the file of a pin that is held.
	PinnedDescriptor(pin uint32) (fd int, align int)
}

// The errors a caller can act on.
var (
	// ErrBusy: something still uses the device (mounted, opened). Detach it there first.
	ErrBusy = errors.New("device is in use")
	// ErrUnavailable: this kernel or container cannot run the backend.
	ErrUnavailable = errors.New("block backend is not available here")
	// ErrPaused: writes of the device wait for space on the image's storage, so
	// that it can be neither emptied nor removed. Not final.
	ErrPaused = errors.New("writes wait for space")
	// ErrGone: the device that should be resumed does not exist any more.
	ErrGone = errors.New("device is gone")
	// ErrUnresumable: what was kept of the device does not fit it, the image or
	// this version of the backend. Teardown, after every copy of the kept
	// descriptors is closed, is all that can be done.
	ErrUnresumable = errors.New("device cannot be resumed")
)

// MaxMeta is the most bytes of meta that a backend gives to Config.Keep.
const MaxMeta = 256

// Config says what to attach.
type Config struct {
	// ID names the volume. Two live devices never share one.
	ID string
	// Image is served until Detach returns; the caller closes it afterwards.
	Image Image
	// QueueDepth is how many requests are served at once; 0: the backend's default.
	QueueDepth int
	// Count is told of each request that is answered. Nil: nobody wants to know.
	Count *Counters
	// Pause holds changes that the image answers with ENOSPC or EDQUOT, and
	// tries them again until there is space, instead of failing them. Reads and
	// flushes go on, as long as the backend has room for requests. The image must
	// answer so before it says that a write is done: one whose writes wait in a
	// cache cannot pause.
	Pause bool
	// PauseLimit is how long a change waits at most before it fails after all.
	// 0: as long as it takes.
	PauseLimit time.Duration
	// Limits from the start on; see [Limiter].
	Limits Limits
	// Keep, if set, is called once, when the device is complete and before
	// Attach returns, with what a successor of this process needs to serve it
	// (see [Resumer]): opaque bytes, at most [MaxMeta], and descriptors, which
	// are only lent. A process that holds copies of these keeps the device alive
	// over the death of its server. Before Keep has returned nil such a death
	// costs the device. An error ends the attach; if Attach fails after Keep has
	// returned nil, what was kept is of no more use. Neither changes in the life
	// of the device, so Resume does not call it. A backend that was told to
	// serve devices that die with their server does not call it either.
	Keep func(meta []byte, files ...*os.File) error
}

// Attacher makes devices of one kind.
type Attacher interface {
	// Name is the backend's name, as --backend takes it.
	Name() string
	Attach(ctx context.Context, c Config) (Device, error)
	// Teardown removes what a server that is no more left behind for a volume:
	// dead devices and connections. Nothing there is success. It never touches
	// a device that it cannot prove to be this volume's, nor one this process
	// serves. ErrBusy: still mounted or open.
	Teardown(ctx context.Context, id string) error
}

// Resumer is an Attacher whose devices outlive their server.
type Resumer interface {
	Attacher
	// Resume serves a device whose server has died or released it, with what
	// Config.Keep was given for it. It takes the files over and closes them on
	// error too. What was in flight is sent again, so it may be carried out
	// twice. ErrGone: there is no such device any more. ErrUnresumable: it may
	// be there, but not for this meta. After an error of any kind the device is
	// not served.
	Resume(ctx context.Context, c Config, meta []byte, files []*os.File) (Device, error)
}

// Releaser is a Device that can be left to a successor.
type Releaser interface {
	// Release ends serving once the requests under way are answered. The device
	// stays, and later requests wait for whoever resumes it.
	Release(ctx context.Context) error
}

// Watched is a Device that knows a hang of its own server from one of the
// storage.
type Watched interface {
	// Alive is asked every second or few, by one caller at a time, and never
	// waits. An error says that serving hangs by a fault of this process, so that
	// only its end will help: it is proven over ten seconds and several calls.
	// Slow storage, a full share or a process that was stopped is no such fault.
	Alive() error
}

// Device is a live block device.
type Device interface {
	// Path of the device node, /dev/loop7.
	Path() string
	// Resize tells the kernel the image's present size.
	Resize(ctx context.Context) error
	// Detach waits for requests in flight and removes the device. ErrBusy: it
	// is still in use and stays attached and served. ErrPaused: so it does while
	// writes wait for space.
	Detach(ctx context.Context) error
	// Done is closed when serving has ended, for whatever reason; Err says why
	// (nil after Detach).
	Done() <-chan struct{}
	Err() error
}
