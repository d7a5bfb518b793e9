package node

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/deathpoint"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// Manager stages and publishes the volumes of one node. Its methods may be
// called from several goroutines.
type Manager struct {
	cfg     Config
	journal *journal
	tools   tools
	boot    string
	// open is Volumes.OpenImage; tests put plain files in its place.
	open func(ctx context.Context, id string, readOnly bool, j vhdx.Journal) (image, error)
	// patience with an image that is in use; see drainPatience.
	patience time.Duration
	// step is told each step that a death could follow; tests die there.
	step func(name string)
	// stopped is closed by Shutdown.
	stopped chan struct{}

	mu      sync.Mutex
	ready   bool               // Recover has run, Shutdown has not
	volumes map[string]*volume // every entry of the journal, by volume id
	busy    map[string]bool    // ids of volumes that a call works on
	frozen  map[string]*frozen // by volume id
	failed  map[string]failure // by volume id
}

// image is what this package needs of a *vhdx.Image.
type image interface {
	blockdev.Image
	Grow(size int64) error
	Blank() (bool, error)
	Info() vhdx.Info
	Close() error
}

// volume is an entry and what this process holds for it. Only the call that
// has begun on its id changes it, under Manager.mu; others read it under that.
type volume struct {
	entry entry // as last made durable
	image image
	life  *life           // nil: nothing of it outlives this process
	dev   blockdev.Device // nil: a leftover, or on the way up or down
	// staged: Stage has come to its end, and nothing has been taken back.
	staged bool
	// waiting says why a device that an earlier process served has no server
	// yet, lost why it never will.
	waiting, lost error
	size          int64              // of the device
	count         *blockdev.Counters // of the device; nil: it never had one here
	stats         statsCell
	// fault says why the staged filesystem takes no more writes, as of the last
	// look; looking: one is under way.
	fault   string
	looking bool
}

// up reports whether the volume is staged and its device served.
func (v *volume) up() bool { return v.staged && !ended(v.dev) }

// usable answers why the volume is not up.
func (v *volume) usable() error {
	switch {
	case v.up():
		return nil
	case v.dev != nil && ended(v.dev):
		return dead(v.dev)
	case v.waiting != nil:
		return unserved(v.waiting)
	case v.lost != nil:
		return fmt.Errorf("%w: %w", ErrDeviceDead, v.lost)
	}
	return fmt.Errorf("%w: it is left from an earlier process, or from a call that failed", ErrNotStaged)
}

func ended(d blockdev.Device) bool {
	select {
	case <-d.Done():
		return true
	default:
		return false
	}
}

// dead says why a device has ended.
func dead(d blockdev.Device) error {
	if err := d.Err(); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrDeviceDead, d.Path(), err)
	}
	return fmt.Errorf("%w: %s", ErrDeviceDead, d.Path())
}

// New opens the state directory. Call Recover before anything else.
func New(c Config) (*Manager, error) {
	if c.StateDir == "" || c.Volumes == nil || c.Attacher == nil {
		return nil, fmt.Errorf("%w: state directory, volumes and attacher are needed", ErrInvalid)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("read boot id: %w", err)
	}
	c.Deadlines = c.Deadlines.filled()
	if c.Guard == nil {
		c.Guard = noGuard{}
	}
	if c.Replayed == nil {
		c.Replayed = func(vhdx.ReplayInfo) {}
	}
	m := &Manager{
		cfg: c, boot: strings.TrimSpace(string(boot)), patience: drainPatience, step: deathpoint.Node, stopped: make(chan struct{}),
		volumes: map[string]*volume{}, busy: map[string]bool{}, frozen: map[string]*frozen{}, failed: map[string]failure{},
	}
	m.open = func(ctx context.Context, id string, readOnly bool, j vhdx.Journal) (image, error) {
		im, err := c.Volumes.OpenImage(ctx, id, readOnly, vhdx.OpenOptions{ReadOnly: readOnly, Journal: j})
		if err != nil {
			return nil, err
		}
		return im, nil
	}
	if m.journal, err = openJournal(context.Background(), c.StateDir, c.StateLocked); err != nil {
		return nil, err
	}
	m.tools.orphans = m.journal.orphans
	return m, nil
}

// begin makes the caller the only one that works on the volume (I-NODE-10).
func (m *Manager) begin(id string) (end func(), err error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.ready {
		return nil, fmt.Errorf("volume %s: %w: the plugin is starting or stopping", id, ErrPending)
	}
	if m.busy[id] {
		return nil, fmt.Errorf("volume %s: %w", id, ErrPending)
	}
	m.busy[id] = true
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.busy, id)
	}, nil
}

func (m *Manager) lookup(id string) *volume {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.volumes[id]
}

// Held reports whether this process has the volume's image open.
func (m *Manager) Held(volumeID string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.volumes[volumeID]
	return v != nil && v.image != nil
}

// Alive says which volume's server hangs by a fault of this process, which only
// its end can mend. It is for a heartbeat, and asked every second or few.
func (m *Manager) Alive() (volumeID string, err error) {
	served := map[string]blockdev.Watched{}
	m.mu.Lock()
	for id, v := range m.volumes {
		if d, ok := v.dev.(blockdev.Watched); ok {
			served[id] = d
		}
	}
	m.mu.Unlock()
	for id, d := range served {
		if err := d.Alive(); err != nil {
			return id, err
		}
	}
	return "", nil
}

// change changes v where others may read it.
func (m *Manager) change(do func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	do()
}

// record makes e the entry of v, durably first.
func (m *Manager) record(v *volume, e entry) error {
	if err := m.journal.put(e); err != nil {
		return err
	}
	m.change(func() { v.entry = e })
	return nil
}

// forget removes the entry of v, when nothing of it is left (I-NODE-1).
func (m *Manager) forget(v *volume) error {
	if err := m.journal.remove(v.entry.Volume); err != nil {
		return err
	}
	m.change(func() { delete(m.volumes, v.entry.Volume) })
	return nil
}
