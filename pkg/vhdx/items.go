package vhdx

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// MetadataItem is an entry of the metadata table (MS-VHDX 2.6.1).
type MetadataItem struct {
	ID   string `json:"id"`
	Name string `json:"name,omitempty"` // of an item that this package knows by name
	// User: a user's, which [Image.UserItem] reads; the others are the system's.
	User bool `json:"user"`
	// VirtualDisk: it belongs to the disk, and is copied to a child.
	VirtualDisk bool `json:"virtualDisk"`
	// Required: who does not know the item must not open the file.
	Required bool  `json:"required"`
	Offset   int64 `json:"offset"` // in the file; of an empty item, the region's
	Length   int64 `json:"length"` // bytes
}

func newMetadataItem(region ondisk.Region, e ondisk.MetadataEntry) MetadataItem {
	item := MetadataItem{
		ID: e.Item.String(), User: e.User, VirtualDisk: e.VirtualDisk, Required: e.Required,
		Offset: int64(region.Offset) + int64(e.Offset), Length: int64(e.Length),
	}
	if !e.User {
		item.Name = itemNames[e.Item]
	}
	return item
}

// MetadataItems returns the entries of the metadata table, in its order.
func (im *Image) MetadataItems() []MetadataItem {
	im = im.lockHead()
	defer im.committing.Unlock()
	var all []MetadataItem
	for _, e := range im.metadata.table.Entries {
		all = append(all, newMetadataItem(im.metadata.region, e))
	}
	return all
}

// UserItem returns the content of a user's item. id is a GUID in text form; an
// item that is not there is [fs.ErrNotExist].
func (im *Image) UserItem(id string) ([]byte, error) {
	guid, err := parseItem(id)
	if err != nil {
		return nil, err
	}
	im = im.lockHead()
	defer im.committing.Unlock()
	if err := im.usable(false); err != nil {
		return nil, err
	}
	e := newMetadataEdit(im)
	i := e.find(guid)
	if i < 0 {
		return nil, im.noItem(guid)
	}
	b := make([]byte, e.table.Entries[i].Length)
	return b, e.read(b, int64(e.table.Entries[i].Offset))
}

// SetUserItem creates or replaces a user's item, and returns when that is
// durable. At most 1 MiB; virtualDisk says whether it goes with the disk into
// differencing children. Interrupted anywhere, the item is the old or the new
// one, whole. Order:
//
//	content, in space of the region that no item has → log → the table's pages, in one entry → log → sync
func (im *Image) SetUserItem(id string, content []byte, virtualDisk bool) error {
	guid, err := parseItem(id)
	if err != nil {
		return err
	}
	if len(content) > ondisk.MaxMetadataItemSize {
		return fmt.Errorf("%s: metadata item %v of %d bytes: at most %d: %w", im.name, guid, len(content), ondisk.MaxMetadataItemSize, ErrInvalid)
	}
	return im.editMetadata(func(e *metadataEdit) error {
		im := e.im
		entry := ondisk.MetadataEntry{Item: guid, User: true, VirtualDisk: virtualDisk, Length: uint32(len(content))}
		if len(content) > 0 {
			off, ok := e.room(int64(len(content)))
			if !ok {
				return fmt.Errorf("%s: metadata item %v of %d bytes: the region of %#x bytes has no room for it beside what is there: delete items first: %w",
					im.name, guid, len(content), im.metadata.region.Length, ErrInvalid)
			}
			entry.Offset = uint32(off)
			if err := e.write(content, off); err != nil {
				return err
			}
		}
		if i := e.find(guid); i >= 0 {
			e.table.Entries[i] = entry
			return nil
		}
		e.table.Entries = append(e.table.Entries, entry)
		return nil
	})
}

// DeleteUserItem removes a user's item, and returns when that is durable. An
// item that is not there is [fs.ErrNotExist].
func (im *Image) DeleteUserItem(id string) error {
	guid, err := parseItem(id)
	if err != nil {
		return err
	}
	return im.editMetadata(func(e *metadataEdit) error {
		i := e.find(guid)
		if i < 0 {
			return e.im.noItem(guid)
		}
		e.table.Entries = slices.Delete(e.table.Entries, i, i+1)
		return nil
	})
}

// SetDiskID gives the disk another identity, which guests see as Page 83 data,
// and returns it when that is durable. id is a GUID in text form; "": a random one.
func (im *Image) SetDiskID(id string) (string, error) {
	guid := ondisk.NewGUID()
	if id != "" {
		var err error
		if guid, err = parseItem(id); err != nil {
			return "", err
		}
	}
	err := im.editMetadata(func(e *metadataEdit) error {
		e.diskID = guid
		for _, entry := range e.table.Entries {
			if entry.Item == ondisk.ItemVirtualDiskID && !entry.User {
				return e.writeInPlace(guid[:], int64(entry.Offset))
			}
		}
		return e.im.noItem(ondisk.ItemVirtualDiskID)
	})
	return guid.String(), err
}

func parseItem(id string) (ondisk.GUID, error) {
	guid, err := ondisk.ParseGUID(id)
	switch {
	case err != nil:
		return guid, fmt.Errorf("metadata item: %w: %w", err, ErrInvalid)
	case guid.IsZero():
		return guid, fmt.Errorf("metadata item %v: all zero: %w", guid, ErrInvalid)
	}
	return guid, nil
}

func (im *Image) noItem(id ondisk.GUID) error {
	return fmt.Errorf("%s: metadata item %v: %w", im.name, id, fs.ErrNotExist)
}

// metadataEdit is a change of the metadata region. It sees the region as the
// log would leave it. Its image's committing is held.
type metadataEdit struct {
	im     *Image
	table  ondisk.MetadataTable
	diskID ondisk.GUID
	pages  map[int64][]byte // by offset in the region: as they will be
	last   []int64          // pages that go into the entry that makes the change, beside the table's
}

func newMetadataEdit(im *Image) *metadataEdit {
	return &metadataEdit{
		im: im, pages: map[int64][]byte{}, diskID: im.metadata.diskID,
		table: ondisk.MetadataTable{Entries: slices.Clone(im.metadata.table.Entries)},
	}
}

// editMetadata makes a change of the region, durably and as a whole.
func (im *Image) editMetadata(change func(*metadataEdit) error) error {
	im, err := im.lockWritable()
	if err != nil {
		return err
	}
	defer im.committing.Unlock()
	if err := im.usable(true); err != nil {
		return err
	}
	e := newMetadataEdit(im)
	if err := change(e); err != nil {
		return err
	}
	return e.commit()
}

// find returns the index of a user's item, or -1.
func (e *metadataEdit) find(id ondisk.GUID) int {
	return slices.IndexFunc(e.table.Entries, func(m ondisk.MetadataEntry) bool { return m.User && m.Item == id })
}

// room returns where in the region n bytes lie that belong to no item.
func (e *metadataEdit) room(n int64) (int64, bool) {
	items := slices.DeleteFunc(slices.Clone(e.table.Entries), func(m ondisk.MetadataEntry) bool { return m.Length == 0 })
	slices.SortFunc(items, func(a, b ondisk.MetadataEntry) int { return cmp.Compare(a.Offset, b.Offset) })
	at := int64(ondisk.MetadataTableSize)
	for _, m := range items {
		if int64(m.Offset)-at >= n {
			return at, true
		}
		at = roundUp(int64(m.Offset)+int64(m.Length), itemAlignment)
	}
	return at, int64(e.im.metadata.region.Length)-at >= n
}

// itemAlignment is for who looks at a dump; the format asks for none.
const itemAlignment = 16

// page returns a page of the region as it will be, for a change.
func (e *metadataEdit) page(off int64) ([]byte, error) {
	if p, ok := e.pages[off]; ok {
		return p, nil
	}
	p := make([]byte, ondisk.PageSize)
	at := int64(e.im.metadata.region.Offset) + off
	if err := e.im.readLogged(p, at); err != nil {
		return nil, fmt.Errorf("%s: read metadata at %#x: %w", e.im.name, at, err)
	}
	e.pages[off] = p
	return p, nil
}

// each calls do with the parts of the pages that a range covers.
func (e *metadataEdit) each(off, n int64, do func(part []byte, done int64)) error {
	for done := int64(0); done < n; {
		at := off + done
		p, err := e.page(at &^ (ondisk.PageSize - 1))
		if err != nil {
			return err
		}
		part := p[at%ondisk.PageSize:]
		part = part[:min(int64(len(part)), n-done)]
		do(part, done)
		done += int64(len(part))
	}
	return nil
}

func (e *metadataEdit) read(b []byte, off int64) error {
	return e.each(off, int64(len(b)), func(part []byte, done int64) { copy(b[done:], part) })
}

// write writes into space that no item has: what a crash leaves of it does not matter.
func (e *metadataEdit) write(b []byte, off int64) error {
	return e.each(off, int64(len(b)), func(part []byte, done int64) { copy(part, b[done:]) })
}

// writeInPlace changes an item of at most a page: at once with the table.
func (e *metadataEdit) writeInPlace(b []byte, off int64) error {
	for page := off &^ (ondisk.PageSize - 1); page < off+int64(len(b)); page += ondisk.PageSize {
		e.last = append(e.last, page)
	}
	return e.write(b, off)
}

// commit logs content first, then what makes it an item: a replay that ends
// between two entries leaves the region as it was.
func (e *metadataEdit) commit() error {
	im := e.im
	for off := range e.pages {
		if off < ondisk.MetadataTableSize {
			return errors.New("the table is changed by its entries alone")
		}
	}
	var content, final []page
	for _, off := range slices.Sorted(maps.Keys(e.pages)) {
		p := page{int64(im.metadata.region.Offset) + off, e.pages[off]}
		if slices.Contains(e.last, off) {
			final = append(final, p)
		} else {
			content = append(content, p)
		}
	}
	changed, err := e.tablePages()
	if err != nil {
		return err
	}
	final = append(final, changed...)
	if len(final) == 0 {
		return nil // as it was
	}
	for part := range slices.Chunk(content, im.log.maxPages()) {
		if err := im.logPages(part); err != nil {
			return err
		}
	}
	if err := im.logPages(final); err != nil {
		return err
	}
	if err := im.syncLog(syncCommit); err != nil {
		return err
	}
	im.metadata.table, im.metadata.diskID = e.table, e.diskID
	im.metadata.locatorIndex = slices.IndexFunc(e.table.Entries, func(m ondisk.MetadataEntry) bool { return m.Item == ondisk.ItemParentLocator && !m.User })
	return nil
}

// tablePages returns the pages of the table that differ from what is there.
func (e *metadataEdit) tablePages() ([]page, error) {
	buf := make([]byte, ondisk.MetadataTableSize)
	if err := e.table.Encode(buf); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", e.im.name, err, ErrInvalid)
	}
	if _, err := ondisk.DecodeMetadataTable(buf, e.im.metadata.region.Length); err != nil {
		return nil, fmt.Errorf("%s: the new metadata table does not read back: %w", e.im.name, err)
	}
	var changed []page
	for off := int64(0); off < ondisk.MetadataTableSize; off += ondisk.PageSize {
		now, err := e.page(off)
		if err != nil {
			return nil, err
		}
		if next := buf[off:][:ondisk.PageSize]; !slices.Equal(now, next) {
			changed = append(changed, page{int64(e.im.metadata.region.Offset) + off, next})
		}
	}
	return changed, nil
}
