package node

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"

	"k8s.io/klog/v2"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// Stage makes the volume a device of this node and mounts its filesystem at
// the staging path. Called again it verifies that this is still so.
func (m *Manager) Stage(ctx context.Context, r StageRequest) (err error) {
	if err := r.check(); err != nil {
		return err
	}
	end, err := m.begin(r.VolumeID)
	if err != nil {
		return err
	}
	defer end()
	defer func() { m.stageEnded(r.VolumeID, err) }()
	v := m.lookup(r.VolumeID)
	if v != nil {
		if err := m.serving(ctx, v); err != nil {
			return fmt.Errorf("stage volume %s: %w", r.VolumeID, err)
		}
		again, err := m.mustStageAnew(ctx, v)
		if err != nil {
			return fmt.Errorf("stage volume %s: %w", r.VolumeID, err)
		}
		if again {
			v = nil
		}
	}
	if v != nil {
		err = m.restage(ctx, v, r)
	} else {
		err = m.stageNew(ctx, r)
	}
	if err != nil {
		return fmt.Errorf("stage volume %s: %w", r.VolumeID, err)
	}
	return nil
}

// check brings r into the form in which it is recorded.
func (r *StageRequest) check() error {
	if r.Block {
		r.FSType, r.MountFlags = "", nil
	} else if r.FSType != "" && !slices.Contains(fsTypes, r.FSType) {
		return unknownFSType(r.FSType)
	}
	var err error
	if r.StagingPath, err = cleanPath(r.StagingPath); err == nil {
		r.MountFlags, err = splitFlags(r.MountFlags)
	}
	return err
}

// stageNew stages a volume of which nothing is here. Whatever goes wrong,
// everything done is undone (I-NODE-6).
func (m *Manager) stageNew(ctx context.Context, r StageRequest) error {
	rec, err := m.attached(ctx, r.VolumeID, r.ReadOnly)
	if err != nil {
		return err
	}
	e := entry{
		Version: entryVersion, Volume: r.VolumeID, Node: m.cfg.NodeID, Boot: m.boot,
		Block: r.Block, ReadOnly: r.ReadOnly, MountFlags: r.MountFlags, Staging: []string{r.StagingPath},
	}
	if !r.Block {
		e.FSType = cmp.Or(r.FSType, rec.Params.FSType, fsTypes[0])
		if _, err := parseMkfsOptions(e.FSType, rec.Params.MkfsOptions); err != nil {
			return err
		}
	}
	if err := prepareStaging(r.StagingPath); err != nil {
		return err
	}
	v := &volume{entry: e}
	m.change(func() { m.volumes[r.VolumeID] = v })
	err = m.record(v, e)
	if err == nil {
		m.step("entry")
		err = m.bringUp(ctx, v)
	}
	if err == nil {
		e = v.entry.clone()
		e.Staged = true
		err = m.record(v, e)
	}
	if err != nil {
		return m.undo(ctx, v, err)
	}
	m.change(func() { v.staged = true })
	return nil
}

// prepareStaging makes sure that there is a directory and nothing mounted on it.
func prepareStaging(path string) error {
	t, err := readMounts()
	if err != nil {
		return err
	}
	if mi := t.at(path); mi != nil {
		return fmt.Errorf("%w: %s; unmount it there", ErrForeignMount, describe(mi))
	}
	return os.MkdirAll(path, 0o750)
}

// bringUp goes from the entry to the mounted filesystem.
func (m *Manager) bringUp(ctx context.Context, v *volume) error {
	id, readOnly := v.entry.Volume, v.entry.ReadOnly
	// What a process before this one left, and lost the journal of.
	err := m.letGo(ctx, id)
	if err == nil {
		err = m.removeDead(ctx, id)
	}
	if err == nil && m.cfg.Keeper != nil {
		v.life, err = newLife(readOnly)
	}
	if err != nil {
		return err
	}
	im, err := m.openImage(ctx, id, readOnly, v.life.journal())
	if err != nil {
		return err
	}
	m.change(func() { v.image = im })
	m.step("opened")
	// Read under the image's lock: another node may have had it until now.
	rec, err := m.attached(ctx, id, readOnly)
	if err != nil {
		return err
	}
	if !readOnly && rec.Size > im.Size() {
		if err := im.Grow(rec.Size); err != nil {
			return fmt.Errorf("grow image: %w", err)
		}
		m.step("grown")
	}
	var todo fsWork
	if !v.entry.Block {
		if todo, err = m.plan(ctx, v, rec); err != nil {
			return err
		}
	}
	if err := m.attach(ctx, v, rec); err != nil {
		return err
	}
	if v.entry.Block {
		return m.useRaw(ctx, v, rec)
	}
	return m.bringUpFilesystem(ctx, v, rec, todo)
}

// useRaw records that the volume may hold data from now on: the device node is
// about to be handed out.
func (m *Manager) useRaw(ctx context.Context, v *volume, rec pool.Volume) error {
	if v.entry.ReadOnly || rec.Use == pool.UseMounted {
		return nil
	}
	return m.cfg.Volumes.SetUse(ctx, v.entry.Volume, pool.UseMounted)
}

func (m *Manager) attach(ctx context.Context, v *volume, rec pool.Volume) error {
	m.change(func() { v.count = new(blockdev.Counters) })
	c, err := m.keepConfig(ctx, v, rec)
	if err != nil {
		return err
	}
	dev, err := m.cfg.Attacher.Attach(m.tools.hold(ctx), c)
	if err != nil {
		return fmt.Errorf("attach device: %w", err)
	}
	m.change(func() { v.dev, v.size = dev, v.image.Size() })
	m.step("attached")
	e := v.entry.clone()
	if e.Device, err = deviceOf(dev.Path()); err != nil {
		return err
	}
	if err := m.record(v, e); err != nil { // I-NODE-2
		return err
	}
	m.step("device recorded")
	return nil
}

// undo tears down what a failed call has built, and says why it failed.
func (m *Manager) undo(ctx context.Context, v *volume, cause error) error {
	ctx = context.WithoutCancel(ctx)
	if v.dev != nil && ended(v.dev) {
		cause = fmt.Errorf("%w: %w", dead(v.dev), cause)
	}
	if err := m.tearDown(ctx, v); err != nil {
		if m.lookup(v.entry.Volume) != nil {
			// The text of the cause only: its sentinel is a final error.
			return fmt.Errorf("%w: %w; it failed because: %s", ErrUnfinished, err, cause.Error())
		}
		klog.FromContext(ctx).Error(err, "Close after a failed stage", "volume", v.entry.Volume)
	}
	return cause
}

// mustStageAnew reports whether nothing is left of the volume, after it has
// torn down what is left of a dead or failed one.
func (m *Manager) mustStageAnew(ctx context.Context, v *volume) (bool, error) {
	if v.up() {
		return m.healed(ctx, v)
	}
	if v.dev != nil {
		if err := m.unused(v, v.entry.Staging); err != nil {
			return false, fmt.Errorf("%w; end the pods that use it: %w", v.usable(), err)
		}
	}
	if err := m.tearDown(ctx, v); err != nil && m.lookup(v.entry.Volume) != nil {
		return false, fmt.Errorf("%w: what is left of an earlier stage: %w", ErrUnfinished, err)
	}
	return true, nil
}

// healed tears a volume down whose filesystem stopped for an error and that
// nobody uses any more: staged anew, it is checked and mounted again.
func (m *Manager) healed(ctx context.Context, v *volume) (bool, error) {
	// With two staging paths the other one would be lost.
	if v.entry.Block || len(v.entry.Staging) > 1 || m.unused(v, v.entry.Staging) != nil {
		return false, nil
	}
	fault, err := m.fault(ctx, v, v.entry.Staging[0])
	if err != nil || fault == "" {
		return false, err
	}
	klog.FromContext(ctx).Info("Staging anew", "volume", v.entry.Volume, "reason", fault)
	if err := m.tearDown(ctx, v); err != nil && m.lookup(v.entry.Volume) != nil {
		return false, err
	}
	return true, nil
}

// restage answers a repeated Stage of a live volume.
func (m *Manager) restage(ctx context.Context, v *volume, r StageRequest) error {
	e := v.entry
	switch {
	case r.Block != e.Block:
		return fmt.Errorf("%w: staged with block=%v", ErrIncompatible, e.Block)
	case r.ReadOnly != e.ReadOnly:
		return fmt.Errorf("%w: staged with readOnly=%v", ErrIncompatible, e.ReadOnly)
	case r.FSType != "" && r.FSType != e.FSType:
		return fmt.Errorf("%w: staged as %s", ErrIncompatible, e.FSType)
	case !slices.Equal(r.MountFlags, e.MountFlags):
		return fmt.Errorf("%w: staged with other mount flags", ErrIncompatible)
	}
	t, err := readMounts()
	if err != nil {
		return err
	}
	known := slices.Contains(e.Staging, r.StagingPath)
	switch mi := t.at(r.StagingPath); {
	case mi != nil && !(known && e.owns(mi)):
		return fmt.Errorf("%w: %s; unmount it there", ErrForeignMount, describe(mi))
	case mi != nil, known && e.Block:
		return nil
	}
	return m.stageBeside(ctx, v, r.StagingPath, known)
}

// stageBeside gives a live volume one more staging path, or mounts again what
// somebody has unmounted. The kernel keeps one filesystem per device.
func (m *Manager) stageBeside(ctx context.Context, v *volume, path string, known bool) error {
	if err := os.MkdirAll(path, 0o750); err != nil {
		return err
	}
	if !known {
		if err := m.record(v, v.entry.withStaging(path)); err != nil {
			return err
		}
	}
	if v.entry.Block {
		return nil
	}
	err := m.mount(ctx, v.entry, path)
	if err == nil || known {
		return err
	}
	// The others stay: the volume is in use there.
	undo := m.unmountOwn(context.WithoutCancel(ctx), v.entry, path, 0)
	if undo == nil {
		undo = m.record(v, v.entry.withoutStaging(path))
	}
	if undo != nil {
		return fmt.Errorf("%w: %w; it failed because: %s", ErrUnfinished, undo, err.Error())
	}
	return err
}
