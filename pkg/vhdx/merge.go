package vhdx

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// MergeOptions says how to merge a child into its parent.
type MergeOptions struct {
	// Parents opens what the parent stands on. Nil: it must stand on nothing.
	Parents ParentOpener
	// CutData lets the parent lose what its disk holds beyond the end of the
	// child's. Otherwise that is refused with [ErrDataBeyondEnd].
	CutData bool
	// Progress, if set, is told how many bytes of the disk are merged. Its
	// error ends the work, which can be taken up again.
	Progress func(done, total int64) error

	omit     barriers // test switch: barriers that are left out
	noTimers bool     // test switch, as in OpenOptions
}

// Merge puts what the child holds into its parent, in place: afterwards the
// parent has the child's size, shows what the child did and has its DataWriteGuid, so that the
// child's own children can be put on it, see [Image.ReplaceParent], and the
// child, which still opens and shows the same, can be removed. No other child
// of the parent opens any more. Neither may be open anywhere.
//
// A death at any step leaves a chain that opens and shows the same; Merge goes
// on when it is called again.
func Merge(ctx context.Context, child, parent string, o MergeOptions) error {
	var files [2]File
	for i, path := range []string{child, parent} {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err == nil {
			files[i], err = NewOSFile(f, FileOptions{})
			if err != nil {
				err = errors.Join(err, f.Close())
			}
		}
		if err != nil {
			if i > 0 {
				err = errors.Join(err, files[0].Close())
			}
			return fmt.Errorf("merge %s into %s: %w", child, parent, err)
		}
	}
	return MergeOn(ctx, files[0], files[1], o)
}

// MergeOn is Merge of the image in child into the one in parent, both of which
// it takes over. Order:
//
//	a new GUID as parent_linkage2 in the child -> sync -> it is the parent's
//	DataWriteGuid -> sync -> size, data, items that belong to the disk -> flush
//	-> child: the new GUID as parent_linkage, its own DataWriteGuid as
//	parent_linkage2 -> sync -> parent: log applied, sync, header with the
//	child's DataWriteGuid and no log -> sync
//
// The child's link holds at each step, and what it holds itself hides how far
// the parent has got.
func MergeOn(ctx context.Context, child, parent File, o MergeOptions) error {
	m := &merge{o: o}
	err := m.open(ctx, child, parent)
	if err == nil {
		err = m.run(ctx)
	}
	if m.parent != nil {
		if err == nil {
			m.parent.lastGUID = m.child.headers.current.DataWriteGUID
		}
		err = errors.Join(err, m.parent.Close())
		if m.late != nil {
			err = errors.Join(err, m.late())
		}
	}
	if m.child != nil {
		err = errors.Join(err, m.child.Close())
	}
	if err != nil {
		return fmt.Errorf("merge %s into %s: %w", child.Name(), parent.Name(), err)
	}
	return nil
}

type merge struct {
	child, parent *Image
	o             MergeOptions
	late          func() error // left for the end by the test switch
}

func (m *merge) open(ctx context.Context, child, parent File) error {
	var err error
	if m.parent, err = Open(parent, OpenOptions{Parents: m.o.Parents, omit: m.o.omit, noTimers: m.o.noTimers}); err != nil {
		m.parent = nil
		return errors.Join(err, child.Close())
	}
	// One use of the parent is m's own.
	m.child, err = Open(child, OpenOptions{rotating: &parentRef{im: m.parent, users: 2}, omit: m.o.omit, noTimers: m.o.noTimers})
	if err != nil {
		m.child = nil
		return err
	}
	if m.child.below.Load() == nil {
		return fmt.Errorf("%s has no parent: %w", m.child.name, ErrInvalid)
	}
	return m.refuseCut(ctx)
}

// refuseCut: the end of a longer parent is no part of the child, and gone with
// the merge. Nothing has been changed yet.
func (m *merge) refuseCut(ctx context.Context) error {
	if m.o.CutData {
		return nil
	}
	size := m.child.Size()
	at, err := m.parent.dataIn(ctx, size, m.parent.Size())
	if err == nil && at >= 0 {
		err = fmt.Errorf("the child's disk ends at %#x, and the parent's holds more than zeros at %#x or soon after it, which no image would show any more: %w", size, at, ErrDataBeyondEnd)
	}
	return err
}

func (m *merge) run(ctx context.Context) error {
	guid := ondisk.NewGUID()
	m.parent.mergeGUID = guid
	before := m.parent.headers.current.DataWriteGUID
	steps := []func() error{func() error { return m.relink(before, guid) }, m.parent.begin}
	if m.o.omit.has(orderAcceptThenMerge) {
		slices.Reverse(steps)
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	size := m.child.Size()
	if err := m.parent.Resize(size, ResizeOptions{CutData: true}); err != nil { //nolint:contextcheck // what it does is short, or may not be cut short
		return err
	}
	buf := alignedBytes(ondisk.MiB)
	for done := int64(0); done < size; {
		end := min(size, done+collapseStep)
		if err := copyLayers(ctx, m.parent, m.child, 1, done, end, buf); err != nil {
			return err
		}
		if done = end; m.o.Progress != nil {
			if err := m.o.Progress(done, size); err != nil {
				return err
			}
		}
	}
	if err := m.items(); err != nil {
		return err
	}
	if err := m.parent.Flush(); err != nil {
		return err
	}
	finish := func() error { return m.relink(guid, m.child.headers.current.DataWriteGUID) }
	if m.o.omit.has(orderAcceptThenFinish) {
		m.late = finish
		return nil
	}
	return finish()
}

// relink gives the child's locator two GUIDs that its parent may have.
func (m *merge) relink(first, second ondisk.GUID) error {
	l := ondisk.ParentLocator{Type: ondisk.LocatorTypeVHDX, Entries: []ondisk.LocatorEntry{
		{Key: ondisk.LocatorParentLinkage, Value: ondisk.FormatLinkage(first)},
		{Key: ondisk.LocatorParentLinkage2, Value: ondisk.FormatLinkage(second)},
	}}
	for _, e := range m.child.metadata.locator.Entries {
		if e.Key != ondisk.LocatorParentLinkage && e.Key != ondisk.LocatorParentLinkage2 {
			l.Entries = append(l.Entries, e)
		}
	}
	return m.child.setLocator(l)
}

// items gives the parent the child's metadata items that belong to the disk,
// in place of its own.
func (m *merge) items() error {
	if m.parent.metadata.diskID != m.child.metadata.diskID {
		if _, err := m.parent.SetDiskID(m.child.metadata.diskID.String()); err != nil {
			return err
		}
	}
	m.child.committing.Lock()
	link, err := m.child.linkLocked()
	m.child.committing.Unlock()
	if err != nil {
		return err
	}
	for _, e := range slices.Clone(m.parent.metadata.table.Entries) {
		if e.User && e.VirtualDisk && !slices.ContainsFunc(link.items, func(i metadataItem) bool { return i.entry.Item == e.Item }) {
			if err := m.parent.DeleteUserItem(e.Item.String()); err != nil {
				return err
			}
		}
	}
	for _, i := range link.items {
		if i.entry.User {
			if err := m.parent.SetUserItem(i.entry.Item.String(), i.data, true); err != nil {
				return err
			}
		}
	}
	return nil
}
