package vhdx

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// Rotate puts a child in this image's place while it is read and written: the
// primitive of snapshots. Child was made by CreateChild of this very image, in
// this session, and nothing is in it. From then on this Image is the child to
// all who hold it, and the file that it was is frozen: a clean image that other
// children may have as their parent. Order:
//
//	the child's session begins; most of the commit is done
//	-> writes wait, those under way end -> log, apply, clear the log (as Close)
//	-> the journal knows both -> record -> the child is the head, writes go on
//
// Record makes durable, outside this package, that the volume's image is the
// child now. Its error means that it has not, and this image goes on in a new
// session; the child's link to it is broken then, so that it cannot be used by
// mistake. So it is after any other error. A death before record leaves this
// image, one after it the child; both open and show the same.
//
// Rotate takes f over, which is locked and writable.
func (im *Image) Rotate(f File, record func() error) error {
	im.rotation.Lock()
	defer im.rotation.Unlock()
	old := im.head()
	child, err := old.openSuccessor(f)
	if err != nil {
		return fmt.Errorf("%s: rotate: %w", old.name, err)
	}
	if err := old.switchTo(im, child, record); err != nil {
		return fmt.Errorf("%s: rotate: %w", old.name, errors.Join(err, child.closeSelf()))
	}
	child.below.Load().flatten()
	return nil
}

// RotatePath is Rotate with the child at path.
func (im *Image) RotatePath(path string, record func() error) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("%s: rotate: %w", im.head().name, err)
	}
	of, err := NewOSFile(f, FileOptions{})
	if err != nil {
		return errors.Join(fmt.Errorf("%s: rotate: %w", im.head().name, err), f.Close())
	}
	return im.Rotate(of, record)
}

// openSuccessor opens the child, on top of im and with its session begun.
func (im *Image) openSuccessor(f File) (*Image, error) {
	if err := im.usable(true); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	o := im.opts
	o.Journal = nil // it is this image's until the switch
	// One use is im's own, as the head; the other is the child's.
	o.rotating = &parentRef{im: im, users: 2}
	child, err := Open(f, o)
	if err != nil {
		return nil, err
	}
	child.pins = im.pins
	child.number = im.number + 1
	if err = child.checkBlank(); err == nil {
		err = child.begin()
	}
	if err == nil {
		err = im.settleAhead()
	}
	if err != nil {
		return nil, errors.Join(err, child.closeSelf())
	}
	return child, nil
}

// checkBlank refuses a successor that would change what the disk reads.
func (im *Image) checkBlank() error {
	if im.below.Load() == nil {
		return fmt.Errorf("%s has no parent: %w", im.name, ErrInvalid)
	}
	b := im.bat.Load()
	for block := range b.geometry.PayloadBlocks() {
		if e := b.payload(block); e != 0 {
			return fmt.Errorf("%s: payload block %d is %v: a new child holds nothing: %w", im.name, block, e.State(), ErrInvalid)
		}
	}
	return nil
}

// settleAhead leaves little to do while writes wait.
func (im *Image) settleAhead() error {
	im.committing.Lock()
	defer im.committing.Unlock()
	if !im.logging {
		return nil
	}
	if err := im.commitLocked(); err != nil {
		return err
	}
	if err := im.apply(); err != nil {
		return err
	}
	return im.syncLog(syncApply)
}

// switchTo is the pause. Root is the image that users hold.
func (im *Image) switchTo(root, child *Image, record func() error) error {
	g, began := &gate{opened: make(chan struct{})}, time.Now()
	defer func() {
		close(g.opened)
		root.pause.Store(int64(time.Since(began)))
	}()
	held := im.gate.Load() // by Hold
	im.gate.Store(g)
	im.writable.Store(false)
	im.pins.wait()
	im.committing.Lock()
	defer im.committing.Unlock()
	im.background.Wait() // nobody is left to start more
	if err := im.freeze(child, record); err != nil {
		if errors.Is(err, ErrUndecided) {
			return im.poisonWith(err)
		}
		err = errors.Join(err, im.resumeWriting())
		if held != nil {
			im.writable.Store(false)
		}
		im.gate.Store(held)
		return err
	}
	child.opts.Journal, child.journalSeq = im.opts.Journal, im.journalSeq
	im.frozen.Store(true)
	parents.addFrozen(child.below.Load().parent)
	im.successor.Store(child)
	root.successor.Store(child) // the short way
	return nil
}

// freeze ends the session of im, which becomes the child's parent. Caller holds
// committing, and no write is under way.
func (im *Image) freeze(child *Image, record func() error) error {
	if err := im.Poisoned(); err != nil {
		return err
	}
	if a, b := im.size.Load(), child.size.Load(); a != b {
		return fmt.Errorf("the disk has %#x bytes, the child %#x: create it anew: %w", a, b, ErrInvalid)
	}
	if err := child.checkParent(im); err != nil {
		return err
	}
	if im.opts.omit.has(orderFreezeThenRecord) {
		if err := record(); err != nil {
			return err
		}
		record = nil
	}
	if im.logging {
		if err := im.settleFile(); err != nil {
			return err
		}
	}
	if j := im.opts.Journal; j != nil && !im.opts.omit.has(orderAnnounceChild) {
		if err := j.Announce(im.headers.current.FileWriteGUID, child.headers.current.FileWriteGUID); err != nil {
			return fmt.Errorf("volatile journal: %w", err)
		}
	}
	if record == nil {
		return nil
	}
	return record()
}

// resumeWriting undoes freeze: the image is written on, in a new session. The
// child's link breaks with it.
func (im *Image) resumeWriting() error {
	if !im.logging || im.Poisoned() != nil {
		return nil
	}
	if !im.headers.current.LogGUID.IsZero() { // the session has not ended
		im.writable.Store(im.begun.Load())
		return nil
	}
	size, err := im.f.Size()
	if err != nil {
		return im.poisonWith(err)
	}
	im.fileEnd = size
	im.space.mu.Lock()
	for chunk, off := range im.space.bitmaps { // they may lie beyond the file's end now
		im.space.release(extent{off, ondisk.BitmapBlockSize})
		delete(im.space.bitmaps, chunk)
	}
	im.space.mu.Unlock()
	if j := im.opts.Journal; j != nil {
		if err := j.Announce(im.headers.current.FileWriteGUID, im.headers.current.FileWriteGUID); err != nil {
			return im.poisonWith(fmt.Errorf("volatile journal: %w", err))
		}
	}
	if err := im.startSession(im.begun.Load()); err != nil {
		if im.Poisoned() == nil {
			return im.poisonWith(err)
		}
		return err
	}
	im.writable.Store(im.begun.Load())
	return nil
}
