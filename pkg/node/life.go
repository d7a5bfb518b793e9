package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/keeper"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// journalSize is the memory of a volatile journal: room for 32,000 mappings
// between two flushes.
const journalSize = 1 << 20

// keptVersion is that of keptMeta.
const keptVersion = 1

// keptMeta says what a volume's item at the keeper is.
type keptMeta struct {
	Version int    `json:"version"`
	Backend string `json:"backend"`
	// Journal: the last file is the volatile journal; those before it are the
	// backend's. A read-only image has none.
	Journal bool `json:"journal,omitempty"`
	// FileWriteGUID of a read-only image: a journal knows it by itself.
	FileWriteGUID string `json:"fileWriteGuid,omitempty"`
	// Device is the backend's own, given back to it as it was.
	Device []byte `json:"device"`
}

// life is what outlives this process for one volume: the journal of its image,
// and the item at the keeper, which holds that and the device's descriptors.
type life struct {
	memory     []byte // of journal; nil: a read-only image
	memfd      *os.File
	ring       *vhdx.Ring
	generation uint64 // of the item; 0: there is none yet
}

// newLife makes the journal for an image that is about to be opened.
func newLife(readOnly bool) (*life, error) {
	if readOnly {
		return &life{}, nil
	}
	fd, err := unix.MemfdCreate("vhdx-journal", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make volatile journal: %w", err)
	}
	f := os.NewFile(uintptr(fd), "vhdx-journal")
	err = f.Truncate(journalSize)
	if err == nil {
		// Nobody can shrink it, so no mapping of it can fault.
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make volatile journal: %w", err), f.Close())
	}
	return openLife(f)
}

// openLife maps a journal. It takes f over, on error too.
func openLife(f *os.File) (*life, error) {
	l := &life{memfd: f}
	st, err := f.Stat()
	if err == nil {
		l.memory, err = unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	}
	if err == nil {
		// Swapped out, it could wait for the very device it serves. Where
		// locking is not permitted the journal works all the same.
		_ = unix.Mlock(l.memory)
		l.ring, err = vhdx.NewRing(l.memory)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map volatile journal: %w", err), l.end())
	}
	return l, nil
}

// end unmaps the journal. Nothing writes to it any more.
func (l *life) end() error {
	if l == nil || l.memfd == nil {
		return nil
	}
	var err error
	if l.memory != nil {
		err = unix.Munmap(l.memory)
	}
	err = errors.Join(err, l.memfd.Close())
	*l = life{generation: l.generation}
	return err
}

// journal is what the image is opened with.
func (l *life) journal() vhdx.Journal {
	if l == nil || l.ring == nil {
		return nil
	}
	return l.ring
}

// keep gives the keeper what a successor of this process needs (I-NODE-11).
func (m *Manager) keep(ctx context.Context, v *volume, device []byte, files []*os.File) error {
	meta := keptMeta{Version: keptVersion, Backend: m.cfg.Attacher.Name(), Device: device}
	if v.life.ring != nil {
		meta.Journal = true
		files = append(files[:len(files):len(files)], v.life.memfd)
	} else {
		meta.FileWriteGUID = v.image.Info().FileWriteGUID
	}
	b, err := json.Marshal(meta)
	if err != nil {
		return fmt.Errorf("describe the device to the keeper: %w", err)
	}
	next := v.life.generation + 1
	if err := m.cfg.Keeper.Put(ctx, keeper.Item{ID: v.entry.Volume, Generation: next, Meta: b, Files: files}); err != nil {
		return noKeeper(err)
	}
	v.life.generation = next
	return nil
}

// keepConfig is how the device of v is attached: with a keeper so that it
// outlives this process.
func (m *Manager) keepConfig(ctx context.Context, v *volume, rec pool.Volume) (blockdev.Config, error) {
	c := blockdev.Config{ID: v.entry.Volume, Image: v.image, Count: v.count}
	if err := m.settings(ctx, &c, rec); err != nil {
		return c, err
	}
	if m.cfg.Keeper != nil {
		c.Keep = func(meta []byte, files ...*os.File) error {
			return m.keep(context.WithoutCancel(ctx), v, meta, files)
		}
	}
	return c, nil
}

// kept is what an earlier process has left at the keeper for one volume.
type kept struct {
	meta  keptMeta
	files []*os.File // the backend's
	life  *life
}

// claim gets what is kept of a volume. The caller owns it.
func (m *Manager) claim(ctx context.Context, id string) (*kept, error) {
	i, err := m.cfg.Keeper.Get(ctx, id)
	if err != nil {
		return nil, noKeeper(err)
	}
	k := &kept{files: i.Files, life: &life{}}
	err = k.open(i, m.cfg.Attacher.Name())
	k.life.generation = i.Generation
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: what the keeper holds: %w", blockdev.ErrUnresumable, err), k.close())
	}
	return k, nil
}

func (k *kept) open(i keeper.Item, backend string) error {
	d := json.NewDecoder(bytes.NewReader(i.Meta))
	d.DisallowUnknownFields()
	if err := d.Decode(&k.meta); err != nil {
		return err
	}
	switch {
	case k.meta.Version != keptVersion:
		return fmt.Errorf("version %d, want %d", k.meta.Version, keptVersion)
	case k.meta.Backend != backend:
		return fmt.Errorf("a device of backend %q, not %q", k.meta.Backend, backend)
	case !k.meta.Journal:
		return nil
	case len(k.files) == 0:
		return errors.New("the volatile journal is missing")
	}
	last := len(k.files) - 1
	memfd := k.files[last]
	k.files = k.files[:last]
	var err error
	if k.life, err = openLife(memfd); err != nil {
		k.life = &life{}
	}
	return err
}

// close gives up everything that has not been taken over.
func (k *kept) close() error {
	errs := []error{k.life.end()}
	for _, f := range k.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// letGo has the keeper forget a volume: the device, if there is one still,
// answers nobody from then on. Nothing kept is success.
func (m *Manager) letGo(ctx context.Context, id string) error {
	if m.cfg.Keeper == nil {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	i, err := m.cfg.Keeper.Get(ctx, id)
	if err == nil {
		err = errors.Join(i.Close(), m.cfg.Keeper.Drop(ctx, id, i.Generation))
	}
	if err == nil || errors.Is(err, keeper.ErrNotFound) {
		return nil
	}
	return noKeeper(err)
}

func noKeeper(err error) error {
	if errors.Is(err, keeper.ErrNotFound) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrNoKeeper, err)
}
