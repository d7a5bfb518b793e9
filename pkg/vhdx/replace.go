package vhdx

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// ParentChange names another file as an image's parent.
type ParentChange struct {
	Path string // of the new parent
	// RelativePath is what the locator shall say. "": from the two files' paths.
	RelativePath string
	// Absolute also writes the absolute path, as in [ChildOptions].
	Absolute bool
}

// ReplaceParent puts the image, while it is read and written, on another
// parent that has the same DataWriteGuid, and so shows the same: the result of
// [Image.CollapseOn] or [Merge], or the parent after it has been moved. If its
// disk has another size than the present parent's, what one of them lacks must
// be zeros, or nothing that the image shows. The image's own DataWriteGuid stays.
// Order:
//
//	new chain open -> new locator, in space of its own -> log -> the table's
//	entry of it -> log -> sync -> the new chain serves -> the old one is closed
//
// A death before the sync leaves the old parent, one after it the new one.
func (im *Image) ReplaceParent(c ParentChange) error {
	im.rotation.Lock()
	defer im.rotation.Unlock()
	im = im.head()
	fail := func(err error) error { return fmt.Errorf("%s: replace the parent: %w", im.name, err) }
	old := im.below.Load()
	if err := im.usable(true); err != nil || old == nil || im.opts.Parents == nil {
		return fail(errors.Join(err, invalid("image", im.name, "one that is open with its parent")))
	}
	if c.RelativePath == "" {
		var err error
		if c.RelativePath, err = relativePath(im.name, c.Path); err != nil {
			return fail(err)
		}
	}
	first, second, err := im.metadata.locator.Linkage()
	if err != nil {
		return fail(err)
	}
	locator := makeLocator(first, c.RelativePath, c.Path, c.Absolute)
	if !second.IsZero() {
		locator.Entries = append(locator.Entries, ondisk.LocatorEntry{Key: ondisk.LocatorParentLinkage2, Value: ondisk.FormatLinkage(second)})
	}
	ref, err := im.openReplacement(locator)
	if err != nil {
		return fail(err)
	}
	next := newChain(ref)
	if err := im.showsSame(old, next); err != nil {
		return fail(errors.Join(err, parents.release(ref)))
	}
	next.flatten()
	if err := im.setLocator(locator); err != nil {
		return fail(errors.Join(err, parents.release(ref)))
	}
	im.below.Store(next)
	im.pins.wait() // whoever reads through the old chain
	if err := parents.release(old.parent); err != nil {
		return fail(err)
	}
	return nil
}

// showsSame refuses a parent that ends elsewhere if the image would show it.
// What the image holds itself it goes on holding.
func (im *Image) showsSame(old, next *chain) error {
	was, is := old.layers[0].size.Load(), next.layers[0].size.Load()
	longer := old
	if is > was {
		longer = next
	}
	end := min(max(was, is), im.size.Load())
	buf := alignedBytes(1 << 20)
	for off := min(was, is); off < end; {
		n, blank, err := im.blankBelow(longer, off, end-off, buf)
		if err != nil {
			return err
		}
		if !blank {
			return fmt.Errorf("%s has %#x bytes, the present parent %#x, and what one of them holds at %#x or soon after it shows: %w", next.layers[0].name, is, was, off, ErrParentMismatch)
		}
		off += n
	}
	return nil
}

// blankBelow reports whether the first part of a range, where the image shows
// the chain, reads zero in it.
func (im *Image) blankBelow(c *chain, off, n int64, buf []byte) (length int64, blank bool, err error) {
	pin := im.pins.enter()
	defer im.pins.leave(pin)
	p, decided, err := im.ownPlace(im.bat.Load(), off, n)
	if err != nil || decided {
		return p.n, true, err
	}
	if p, err = c.locate(off, p.n); err != nil || p.layer == nil {
		return p.n, true, err
	}
	blank, err = p.layer.blankRange(context.Background(), p.off, p.off+p.n, buf)
	return p.n, blank, err
}

func (im *Image) openReplacement(l ondisk.ParentLocator) (*parentRef, error) {
	value, _ := l.Value(ondisk.LocatorRelativePath)
	f, tried, err := im.opts.Parents.OpenParent(im.name, ParentPath{ondisk.LocatorRelativePath, value})
	if err == nil {
		var ref *parentRef
		if ref, err = im.openParentFile(f); err == nil {
			return ref, nil
		}
	}
	return nil, &ParentError{Child: im.name, Tried: []string{tried}, Err: err}
}

// setLocator replaces the parent locator, durably and as a whole. Data does
// not change by it, nor does DataWriteGuid.
func (im *Image) setLocator(l ondisk.ParentLocator) error {
	content, err := l.Encode()
	if err != nil {
		return err
	}
	im.committing.Lock()
	defer im.committing.Unlock()
	if err := im.usable(true); err != nil {
		return err
	}
	if err := im.beginLocked(false); err != nil {
		return err
	}
	e := newMetadataEdit(im)
	off, ok := e.room(int64(len(content)))
	if !ok {
		return fmt.Errorf("the metadata region has no room for a locator of %d bytes beside the present one: delete user items first: %w", len(content), ErrInvalid)
	}
	if err := e.write(content, off); err != nil {
		return err
	}
	i := slices.IndexFunc(e.table.Entries, func(m ondisk.MetadataEntry) bool { return !m.User && m.Item == ondisk.ItemParentLocator })
	e.table.Entries[i].Offset, e.table.Entries[i].Length = uint32(off), uint32(len(content))
	if err := e.commit(); err != nil {
		return err
	}
	im.metadata.locator = l
	return nil
}
