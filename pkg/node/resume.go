package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/keeper"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool/lease"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// retryAfter is how soon a volume that could not be resumed is tried again: at
// first, and at most.
const (
	retryAfter    = time.Second
	retryAfterMax = 30 * time.Second
)

// resumable reports whether the device of an entry may outlive the process
// that made it.
func (m *Manager) resumable(e entry) bool {
	_, ok := m.cfg.Attacher.(blockdev.Resumer)
	return ok && m.cfg.Keeper != nil && e.Staged && e.Device != nil
}

// resume serves a volume whose server has died, or has released it, where it
// stopped. Its mounts stay as they are, and requests on the way are carried
// out. Order:
//
//	attached to this node > what the keeper holds > image with that journal
//	(waits for the dead process's I/O, replays, commits) > device > the very device of the entry
//
// After an error the device still waits, and it may be tried again, unless
// [lost] says that it is in vain.
func (m *Manager) resume(ctx context.Context, v *volume) error {
	e := v.entry
	rec, err := m.attached(ctx, e.Volume, e.ReadOnly)
	if err != nil {
		return err
	}
	k, err := m.claim(ctx, e.Volume)
	if err != nil {
		return err
	}
	m.step("claimed")
	im, err := m.openImage(ctx, e.Volume, e.ReadOnly, k.life.journal())
	if err != nil {
		return errors.Join(takenOver(err, m.cfg.NodeID), k.close())
	}
	m.step("reopened")
	count := new(blockdev.Counters)
	c := blockdev.Config{ID: e.Volume, Image: im, Count: count}
	if err := m.settings(ctx, &c, rec); err != nil {
		// Whoever uses it is not to lose it for that.
		klog.FromContext(ctx).Error(err, "Writes will fail when the share is full", "volume", e.Volume)
	}
	dev, err := m.takeDevice(ctx, e, im, c, k)
	if err != nil {
		return errors.Join(err, im.Close(), k.close())
	}
	m.step("resumed")
	m.change(func() {
		v.image, v.dev, v.life, v.size, v.count = im, dev, k.life, im.Size(), count
		v.staged, v.waiting = true, nil
	})
	return nil
}

// takeDevice serves the entry's device with the image.
func (m *Manager) takeDevice(ctx context.Context, e entry, im image, c blockdev.Config, k *kept) (blockdev.Device, error) {
	if k.meta.FileWriteGUID != "" && im.Info().FileWriteGUID != k.meta.FileWriteGUID {
		return nil, fmt.Errorf("FileWriteGuid is %s, was %s: %w", im.Info().FileWriteGUID, k.meta.FileWriteGUID, vhdx.ErrTakenOver)
	}
	resumer := m.cfg.Attacher.(blockdev.Resumer)
	files := k.files
	k.files = nil // the backend's from now on
	dev, err := resumer.Resume(m.tools.hold(ctx), c, k.meta.Device, files)
	if err != nil {
		return nil, err
	}
	got, err := deviceOf(dev.Path())
	if err == nil && *got != *e.Device {
		err = fmt.Errorf("resumed device %s is %d:%d, the journal knows %s, %d:%d: %w",
			got.Path, got.Major, got.Minor, e.Device.Path, e.Device.Major, e.Device.Minor, blockdev.ErrGone)
	}
	if err != nil {
		return nil, errors.Join(err, dev.(blockdev.Releaser).Release(context.WithoutCancel(ctx)))
	}
	return dev, nil
}

// takenOver marks the error of an image that another node holds: whoever has
// it may have written to it.
func takenOver(err error, self string) error {
	if h, ok := errors.AsType[*lease.HeldError](err); ok && h.Holder.Node != "" && h.Holder.Node != self {
		return fmt.Errorf("%w: %w", vhdx.ErrTakenOver, err)
	}
	return err
}

// lost reports whether the device can never be served again. Everything else
// may pass: a share that does not answer, an image that an operator repairs.
func lost(err error) bool {
	return errors.Is(err, vhdx.ErrTakenOver) || errors.Is(err, blockdev.ErrGone) || errors.Is(err, blockdev.ErrUnresumable) ||
		errors.Is(err, keeper.ErrNotFound) || errors.Is(err, ErrNotAttached) || errors.Is(err, ErrIncompatible)
}

// serving answers whether the volume has its server. One that waits for it
// since the death of an earlier process is tried once more: whoever calls
// would otherwise tear down, or wait for, a device that may come back.
func (m *Manager) serving(ctx context.Context, v *volume) error {
	if v.waiting == nil {
		return nil
	}
	err := m.resume(ctx, v)
	switch {
	case err == nil:
		klog.FromContext(ctx).Info("Resumed", "volume", v.entry.Volume, "device", v.entry.Device.Path)
		return nil
	case lost(err):
		return m.cutOff(ctx, v, err)
	}
	return m.wait(v, err)
}

// wait keeps the volume's device waiting for a server.
func (m *Manager) wait(v *volume, reason error) error {
	m.change(func() { v.waiting = reason })
	return unserved(reason)
}

func unserved(reason error) error {
	return fmt.Errorf("%w: %w", ErrUnserved, reason)
}

// cutOff ends the waiting of a device that can never be served again: all its
// requests fail from now on. What is left of it is torn down by whoever calls
// next.
func (m *Manager) cutOff(ctx context.Context, v *volume, reason error) error {
	log := klog.FromContext(ctx).WithValues("volume", v.entry.Volume, "device", v.entry.Device.Path)
	if errors.Is(reason, blockdev.ErrGone) {
		log.Info("The device is gone", "reason", reason.Error()) // an Unstage had come that far
	} else {
		log.Error(reason, "Device cannot be served any more; its requests fail")
	}
	if err := m.letGo(ctx, v.entry.Volume); err != nil {
		return m.wait(v, errors.Join(reason, err))
	}
	m.change(func() { v.waiting, v.lost = nil, reason })
	return nil
}

// retry tries a waiting volume again and again until it is served or lost. Calls
// for it try as well.
func (m *Manager) retry(ctx context.Context, id string, v *volume) {
	log := klog.FromContext(ctx).WithValues("volume", id)
	for pause := retryAfter; ; pause = min(2*pause, retryAfterMax) {
		select {
		case <-m.stopped:
			return
		case <-time.After(pause):
		}
		end, err := m.begin(id)
		if errors.Is(err, ErrPending) {
			continue
		}
		if v.waiting == nil {
			end()
			return
		}
		err = m.serving(ctx, v)
		waiting := v.waiting != nil
		end()
		if !waiting {
			return
		}
		log.Info("Device waits for its server; its requests are held, none has failed", "reason", errText(err))
	}
}

// noGuard stands where no supervisor is.
type noGuard struct{}

func (noGuard) Blame(context.Context, string) (func(), error) { return func() {}, nil }
func (noGuard) Quarantined() []string                         { return nil }

// openGuarded opens an image, which may be damaged in a way that kills this
// process: the guard then knows which one it was.
func (m *Manager) openGuarded(ctx context.Context, id string, readOnly bool, j vhdx.Journal) (image, error) {
	if slices.Contains(m.cfg.Guard.Quarantined(), id) {
		return nil, ErrQuarantined
	}
	release, err := m.cfg.Guard.Blame(ctx, id)
	if err != nil {
		return nil, err
	}
	defer release()
	return m.open(ctx, id, readOnly, j)
}
