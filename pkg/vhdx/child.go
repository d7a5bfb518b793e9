package vhdx

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// ChildOptions says what differencing image to create. Zero means: the
// default. Sector sizes are the parent's.
type ChildOptions struct {
	// Size of the virtual disk in bytes. 0: the parent's. Beyond the parent's
	// end a larger child reads zero; a smaller one cuts it.
	Size int64
	// BlockSize as in [CreateOptions]. 0: 2 MiB, as Windows, and more for disks
	// over 1 TiB, so that the table stays below 5 MiB.
	BlockSize int64
	// LogSize and Creator as in [CreateOptions].
	LogSize int64
	Creator string
	// RelativePath is that of the parent as the locator shall have it, with
	// either separator. "": from the two files' paths.
	RelativePath string
	// Absolute also writes the parent's absolute path, as one on drive C:.
	Absolute bool
}

// CreateChild writes, at path, a differencing image whose parent is the image
// at parent. Parent must not be open for writing anywhere ([ErrInUse]), and
// nothing may write to it as long as it has children: their link to it breaks.
// For the file at path the same holds as for [Create].
func CreateChild(path, parent string, o ChildOptions) (Created, error) {
	im, err := OpenPath(parent, OpenOptions{ReadOnly: true, NoParents: true})
	if err != nil {
		return Created{}, fmt.Errorf("create %s: %w", path, err)
	}
	defer im.closeSelf() //nolint:errcheck // read-only
	return im.CreateChild(path, o)
}

// CreateChild writes, at path, a differencing image whose parent is this one,
// which may be open read-only. Of a writable one it can only become the
// successor, see [Image.Rotate]: any later session on the parent breaks the
// link.
func (im *Image) CreateChild(path string, o ChildOptions) (Created, error) {
	if o.RelativePath == "" {
		var err error
		if o.RelativePath, err = relativePath(path, im.head().name); err != nil {
			return Created{}, fmt.Errorf("create %s: %w", path, err)
		}
	}
	return createPath(path, func(f File) (Created, error) { return im.CreateChildOn(f, o) })
}

// relativePath is how a locator names parent in the directory of child.
func relativePath(child, parent string) (string, error) {
	dir, err := filepath.Abs(filepath.Dir(child))
	if err != nil {
		return "", err
	}
	if parent, err = filepath.Abs(parent); err != nil {
		return "", err
	}
	return filepath.Rel(dir, parent)
}

// CreateChildOn is CreateChild into the empty file f, as [CreateOn]. The
// options name the relative path.
func (im *Image) CreateChildOn(f File, o ChildOptions) (Created, error) {
	fail := func(err error) (Created, error) { return Created{}, fmt.Errorf("create %s: %w", f.Name(), err) }
	link, err := im.link()
	if err != nil {
		return fail(err)
	}
	if err := link.name(o); err != nil {
		return fail(err)
	}
	if o.Size == 0 {
		o.Size = link.size
	}
	if o.BlockSize == 0 {
		o.BlockSize = childBlockSize(o.Size)
	}
	done, err := CreateOptions{
		Size: o.Size, BlockSize: o.BlockSize, LogSize: o.LogSize, Creator: o.Creator,
		LogicalSectorSize: link.logicalSectorSize, PhysicalSectorSize: link.physicalSectorSize,
	}.complete()
	if err != nil {
		return fail(err)
	}
	c := &creation{f: f, o: done.Options, link: link}
	if err := c.run(); err != nil {
		return fail(err)
	}
	return done, nil
}

func childBlockSize(size int64) int64 {
	const blocks = 1 << 19
	block := int64(2 * ondisk.MiB)
	for block < ondisk.MaxBlockSize && size/block > blocks {
		block *= 2
	}
	return block
}

// parentLink is what a child has from its parent.
type parentLink struct {
	path                                  string
	guid                                  ondisk.GUID // DataWriteGuid
	diskID                                ondisk.GUID
	size                                  int64
	logicalSectorSize, physicalSectorSize int
	items                                 []metadataItem // that belong to the disk, but for those this package knows
	locator                               []byte         // nil: the image has no parent
}

// metadataItem is an item and its content.
type metadataItem struct {
	entry ondisk.MetadataEntry
	data  []byte
}

// link reads what a child needs. A writable image begins its session first:
// DataWriteGuid then stays as it is until Close.
func (im *Image) link() (*parentLink, error) {
	var err error
	if head := im.head(); head.opts.ReadOnly {
		im = head.lockHead()
	} else if im, err = im.lockWritable(); err != nil {
		return nil, err
	}
	defer im.committing.Unlock()
	return im.linkLocked()
}

// linkLocked is link of this very image. Caller holds committing.
func (im *Image) linkLocked() (*parentLink, error) {
	if err := im.usable(false); err != nil {
		return nil, err
	}
	m := &im.metadata
	l := &parentLink{
		path: im.name, guid: im.headers.current.DataWriteGUID, diskID: m.diskID, size: im.size.Load(),
		logicalSectorSize: m.logicalSectorSize, physicalSectorSize: m.physicalSectorSize,
	}
	known := m.decoders()
	for _, e := range m.table.Entries {
		if _, ok := known[e.Item]; !e.VirtualDisk || ok && !e.User {
			continue
		}
		data := make([]byte, e.Length)
		if err := im.readLogged(data, int64(m.region.Offset)+int64(e.Offset)); err != nil {
			return nil, fmt.Errorf("%s: read metadata item %v: %w", im.name, e.Item, err)
		}
		l.items = append(l.items, metadataItem{e, data})
	}
	return l, nil
}

// readLogged reads metadata as it will be when the log has been applied.
// Caller holds committing.
func (im *Image) readLogged(p []byte, off int64) error {
	if err := readFull(im.f, p, off); err != nil {
		return err
	}
	for at := off &^ (ondisk.PageSize - 1); at < off+int64(len(p)); at += ondisk.PageSize {
		if data, ok := im.log.logged[at]; ok {
			lo, hi := max(at, off), min(at+ondisk.PageSize, off+int64(len(p)))
			copy(p[lo-off:hi-off], data[lo-at:])
		}
	}
	return nil
}

// name makes the locator.
func (l *parentLink) name(o ChildOptions) (err error) {
	if o.RelativePath == "" {
		return invalid("relative path", `""`, "the parent's, from the child's directory")
	}
	l.locator, err = makeLocator(l.guid, o.RelativePath, l.path, o.Absolute).Encode()
	return err
}

// makeLocator names a parent as Windows does: backslashes, and ".\" before a
// file in the same directory.
func makeLocator(guid ondisk.GUID, relative, path string, absolute bool) ondisk.ParentLocator {
	relative = strings.ReplaceAll(relative, "/", `\`)
	if !strings.HasPrefix(relative, `.`) {
		relative = `.\` + relative
	}
	entries := []ondisk.LocatorEntry{
		{Key: ondisk.LocatorParentLinkage, Value: ondisk.FormatLinkage(guid)},
		{Key: ondisk.LocatorRelativePath, Value: relative},
	}
	if path, err := filepath.Abs(path); absolute && err == nil {
		entries = append(entries, ondisk.LocatorEntry{Key: ondisk.LocatorAbsoluteWin32Path, Value: `\\?\C:` + strings.ReplaceAll(path, "/", `\`)})
	}
	return ondisk.ParentLocator{Type: ondisk.LocatorTypeVHDX, Entries: entries}
}
