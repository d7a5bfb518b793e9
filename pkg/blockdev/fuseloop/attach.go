package fuseloop

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/loopdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
)

// Name of the backend.
const Name = "fuseloop"

const (
	defaultDepth = loopTags
	// A child answers in milliseconds when the image does.
	attachDeadline = 30 * time.Second
	// Detaching writes what is dirty, which may be much.
	detachDeadline = 5 * time.Minute
	probeDeadline  = 3 * time.Second
)

// Options of an [Attacher]. The zero value is right.
type Options struct {
	// Note is told, once for each, what is less good than it could be with
	// this kernel and these rights, and, by Alive, that the storage does not
	// answer; id is the volume's. It must not block.
	Note func(id, text string)
	// Crashing, if set, is told the volume whose serving panics, an image's
	// methods that are called for it included, before the panic ends the process
	// as it would have anyhow. It must not block, and may be called more than once.
	Crashing func(id string)
	// NoRing serves without io_uring, with blocking threads only.
	NoRing bool
	// AllowWithoutResend attaches where this kernel does not send requests
	// again that a dead server has read, or damages them. The device is then not
	// given to Config.Keep: the death of its server costs it, and Teardown is
	// all that can be done for it. Without this such an attach is refused with
	// ErrUnavailable. Of no meaning where Config.Keep is nil.
	AllowWithoutResend bool

	fault   string // test switch: the step to fail at
	release string // test switch: the kernel's release
	maxIO   uint32 // test switch: the largest READ or WRITE of new connections
}

// Attacher makes fuseloop devices.
type Attacher struct {
	o Options

	mu     sync.Mutex         // guards live
	live   map[string]*Device // by tag; nil: somebody is about to attach it or tear it down
	left   leftChildren
	spills spills
}

var _ blockdev.Attacher = (*Attacher)(nil)

// New makes an attacher. One per process is enough, and is needed for
// Teardown to know what this process serves.
func New(o Options) *Attacher {
	if o.Note == nil {
		o.Note = func(string, string) {}
	}
	if o.Crashing == nil {
		o.Crashing = func(string) {}
	}
	o.maxIO = cmp.Or(o.maxIO, maxIO)
	return &Attacher{o: o, live: map[string]*Device{}}
}

// Name is "fuseloop".
func (a *Attacher) Name() string { return Name }

// tagOf is how the devices of a volume are recognised: the name of the file
// in the FUSE connection, and of the loop device.
func tagOf(id string) string {
	sum := volumeOf(id)
	return "csi-vhdx-" + hex.EncodeToString(sum[:])
}

func volumeOf(id string) [16]byte {
	sum := sha256.Sum256([]byte(id))
	return [16]byte(sum[:16])
}

// Attach makes a device. On any error nothing is left (I-DEV-4).
func (a *Attacher) Attach(ctx context.Context, c blockdev.Config) (blockdev.Device, error) {
	wrap := func(err error) error { return fmt.Errorf("attach volume %s: %w", c.ID, err) }
	if err := ctx.Err(); err != nil {
		return nil, wrap(err)
	}
	if err := check(c); err != nil {
		return nil, wrap(err)
	}
	c = filled(c)
	tag := tagOf(c.ID)
	if err := a.claim(tag); err != nil {
		return nil, wrap(err)
	}
	d := &Device{a: a, id: c.ID, tag: tag, image: c.Image, detach: make(chan struct{}, 1), done: make(chan struct{})}
	if err := d.attach(ctx, c); err != nil {
		a.forget(tag, nil)
		return nil, wrap(err)
	}
	a.mu.Lock()
	a.live[tag] = d
	a.mu.Unlock()
	return d, nil
}

func check(c blockdev.Config) error {
	size, sector := c.Image.Size(), c.Image.LogicalSectorSize()
	switch {
	case c.ID == "":
		return errors.New("volume has no id")
	case sector != 512 && sector != 4096:
		return fmt.Errorf("logical sector size %d is neither 512 nor 4096", sector)
	case size <= 0 || size%int64(sector) != 0:
		return fmt.Errorf("size %d is no positive multiple of the sector size %d", size, sector)
	case c.PauseLimit < 0 || c.Limits.IOPS < 0 || c.Limits.Bandwidth < 0 || c.Limits.Burst < 0:
		return errors.New("a limit is negative")
	case c.QueueDepth < 0 || c.QueueDepth > 1024:
		return fmt.Errorf("queue depth %d is not in 1 to 1024", c.QueueDepth)
	}
	return nil
}

// filled gives what is not said its default.
func filled(c blockdev.Config) blockdev.Config {
	if c.QueueDepth == 0 {
		c.QueueDepth = defaultDepth
	}
	if c.Count == nil {
		c.Count = new(blockdev.Counters)
	}
	return c
}

// reserve makes the caller the only one of this process that deals with tag.
// A device whose server has ended does not count.
func (a *Attacher) reserve(tag string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if d, taken := a.live[tag]; taken && (d == nil || !d.ended()) {
		return fmt.Errorf("it is attached by this process: %w", blockdev.ErrBusy)
	}
	a.live[tag] = nil
	return nil
}

// claim reserves tag for an attach. It sees other processes' devices too, but
// what excludes them for sure is the image's lock.
func (a *Attacher) claim(tag string) error {
	if err := a.reserve(tag); err != nil {
		return err
	}
	found, err := loopdev.Find(tag)
	if err == nil && len(found) > 0 {
		err = fmt.Errorf("%s of this volume is still there; tear it down first: %w", loopdev.Path(found[0].Number), blockdev.ErrBusy)
	}
	if err != nil {
		a.forget(tag, nil)
	}
	return err
}

// forget ends what reserve began, or the life of device d.
func (a *Attacher) forget(tag string, d *Device) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.live[tag] == d {
		delete(a.live, tag)
	}
}

// owns reports whether d is still the device of its tag.
func (a *Attacher) owns(d *Device) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.live[d.tag] == d
}

func (a *Attacher) preflight() error {
	if err := timeouts(fuseSysctls); err != nil {
		return err
	}
	for _, path := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("%w (load the module, or give the container its /dev): %w", err, blockdev.ErrUnavailable)
		}
	}
	return failAt(a.o.fault, stepPreflight, nil)
}
