package ondisk

import (
	"cmp"
	"fmt"
	"slices"
)

// MetadataTable is the table at the start of the metadata region (MS-VHDX
// 2.6.1). Neither it nor the items have a checksum.
//
//	 0   8  signature "metadata"
//	 8   2  reserved
//	10   2  EntryCount, at most 2,047
//	12  20  reserved
//	32      entries
type MetadataTable struct {
	Entries []MetadataEntry
}

// MetadataEntry says where an item lies.
//
//	 0  16  Item    unique together with User
//	16   4  Offset  in the region, at least 64 KiB; 0 if and only if Length is
//	20   4  Length  at most 1 MiB
//	24   4  flags   bit 0 User, bit 1 VirtualDisk, bit 2 Required, others 0
//	28   4  reserved
type MetadataEntry struct {
	Item           GUID
	Offset, Length uint32
	User           bool // made by a user of the disk, not by the system
	VirtualDisk    bool // belongs to the disk: copied to a child
	Required       bool // who does not know the item must not open the file
}

const (
	metadataUser        = 1 << 0
	metadataVirtualDisk = 1 << 1
	metadataRequired    = 1 << 2
	metadataFlags       = metadataUser | metadataVirtualDisk | metadataRequired
)

// DecodeMetadataTable reads the first 64 KiB of a metadata region that is
// regionLength bytes long. Every item lies inside the region, beyond the
// table, and overlaps no other.
func DecodeMetadataTable(b []byte, regionLength uint32) (MetadataTable, error) {
	t, problems, err := InspectMetadataTable(b, regionLength)
	if err == nil && len(problems) > 0 {
		err = problems[0]
	}
	if err != nil {
		return MetadataTable{}, err
	}
	return t, nil
}

// InspectMetadataTable is [DecodeMetadataTable] for who wants to see all of a
// broken table: entries that break a rule of their own are left out of the
// table, and these and the ones that clash with others are told as problems.
// The error says that there is no table to speak of.
func InspectMetadataTable(b []byte, regionLength uint32) (MetadataTable, []error, error) {
	const name = "metadata table"
	if len(b) < MetadataTableSize {
		return MetadataTable{}, nil, errShort(name, len(b), MetadataTableSize)
	}
	if err := checkSignature(name, b, signatureMetadata); err != nil {
		return MetadataTable{}, nil, err
	}
	count := int(le.Uint16(b[10:]))
	if count > MaxMetadataEntries {
		return MetadataTable{}, nil, errf(name, 10, "%d entries, at most %d are allowed", count, MaxMetadataEntries)
	}
	t := MetadataTable{Entries: make([]MetadataEntry, 0, count)}
	var problems []error
	at := make([]int, 0, count) // of the entries in t
	for i := range count {
		off := metadataHeaderSize + i*metadataEntrySize
		e, flags := decodeMetadataEntry(b[off:])
		field, err := e.check(regionLength)
		switch {
		case flags&^metadataFlags != 0:
			problems = append(problems, errf(name, off+24, "item %v: unknown flags %#x", e.Item, flags))
		case err != nil:
			problems = append(problems, errf(name, off+field, "item %v: %v", e.Item, err))
		default:
			t.Entries, at = append(t.Entries, e), append(at, off)
		}
	}
	t.check(func(i int, err error) { problems = append(problems, errf(name, at[i], "%v", err)) })
	return t, problems, nil
}

func decodeMetadataEntry(b []byte) (MetadataEntry, uint32) {
	flags := le.Uint32(b[24:])
	return MetadataEntry{
		Item:        GUID(b[:16]),
		Offset:      le.Uint32(b[16:]),
		Length:      le.Uint32(b[20:]),
		User:        flags&metadataUser != 0,
		VirtualDisk: flags&metadataVirtualDisk != 0,
		Required:    flags&metadataRequired != 0,
	}, flags
}

// check returns the broken rule and the offset of its field in the entry.
func (e MetadataEntry) check(regionLength uint32) (field int, err error) {
	switch {
	case e.Length == 0 && e.Offset == 0: // present, but empty
		return 0, nil
	case e.Length == 0:
		return 16, fmt.Errorf("empty, but at offset %#x", e.Offset)
	case e.Length > MaxMetadataItemSize:
		return 20, fmt.Errorf("length %#x, at most %#x is allowed", e.Length, MaxMetadataItemSize)
	case e.Offset < MetadataTableSize:
		return 16, fmt.Errorf("offset %#x lies in the table", e.Offset)
	case uint64(e.Offset)+uint64(e.Length) > uint64(regionLength):
		return 16, fmt.Errorf("%#x bytes at offset %#x reach beyond the region of %#x bytes", e.Length, e.Offset, regionLength)
	}
	return 0, nil
}

// check looks for what single entries cannot show, and tells it with the index
// of an offender.
func (t MetadataTable) check(tell func(i int, err error)) {
	type key struct {
		item GUID
		user bool
	}
	seen := make(map[key]bool, len(t.Entries))
	order := make([]int, len(t.Entries))
	users := 0
	for i, e := range t.Entries {
		k := key{e.Item, e.User}
		if seen[k] {
			tell(i, fmt.Errorf("item %v appears twice", e.Item))
		}
		seen[k], order[i] = true, i
		if e.User {
			if users++; users == MaxUserMetadataEntries+1 {
				tell(i, fmt.Errorf("more than %d user items", MaxUserMetadataEntries))
			}
		}
	}
	slices.SortStableFunc(order, func(i, j int) int { return cmp.Compare(t.Entries[i].Offset, t.Entries[j].Offset) })
	var end uint64
	var last GUID // whose end that is
	for _, i := range order {
		e := t.Entries[i]
		if e.Length == 0 {
			continue
		}
		if uint64(e.Offset) < end {
			tell(i, fmt.Errorf("item %v at offset %#x overlaps item %v", e.Item, e.Offset, last))
		}
		if itemEnd := uint64(e.Offset) + uint64(e.Length); itemEnd > end {
			end, last = itemEnd, e.Item
		}
	}
}

// Encode writes the table to the first 64 KiB of dst. It refuses what
// [DecodeMetadataTable] would refuse, but for the length of the region.
func (t MetadataTable) Encode(dst []byte) error {
	if len(dst) < MetadataTableSize {
		return errShort("metadata table", len(dst), MetadataTableSize)
	}
	if len(t.Entries) > MaxMetadataEntries {
		return fmt.Errorf("metadata table of %d entries: at most %d are allowed", len(t.Entries), MaxMetadataEntries)
	}
	var broken error
	t.check(func(_ int, err error) {
		if broken == nil {
			broken = fmt.Errorf("metadata table: %w", err)
		}
	})
	if broken != nil {
		return broken
	}
	dst = dst[:MetadataTableSize]
	clear(dst)
	signature(dst, signatureMetadata)
	le.PutUint16(dst[10:], uint16(len(t.Entries)))
	for i, e := range t.Entries {
		if _, err := e.check(1<<32 - 1); err != nil {
			return fmt.Errorf("metadata item %v: %w", e.Item, err)
		}
		e.encode(dst[metadataHeaderSize+i*metadataEntrySize:])
	}
	return nil
}

func (e MetadataEntry) encode(dst []byte) {
	var flags uint32
	if e.User {
		flags |= metadataUser
	}
	if e.VirtualDisk {
		flags |= metadataVirtualDisk
	}
	if e.Required {
		flags |= metadataRequired
	}
	copy(dst, e.Item[:])
	le.PutUint32(dst[16:], e.Offset)
	le.PutUint32(dst[20:], e.Length)
	le.PutUint32(dst[24:], flags)
}
