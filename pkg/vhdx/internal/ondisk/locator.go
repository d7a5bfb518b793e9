package ondisk

import (
	"fmt"
	"slices"
	"unicode/utf16"
	"unicode/utf8"
)

// ParentLocator is the metadata item that names the parent of a differencing
// file (MS-VHDX 2.6.2.6).
//
//	 0  16  Type
//	16   2  reserved
//	18   2  KeyValueCount
//	20      entries
//
// An entry:
//
//	 0  4  KeyOffset    from the item's start
//	 4  4  ValueOffset  from the item's start
//	 8  2  KeyLength    bytes, even, above 0
//	10  2  ValueLength  bytes, even, above 0
//
// Keys and values are UTF-16LE without NUL.
type ParentLocator struct {
	Type    GUID // [LocatorTypeVHDX], or the locator is not to be understood
	Entries []LocatorEntry
}

// LocatorEntry is a pair of a parent locator. Keys are unique and their case
// matters.
type LocatorEntry struct {
	Key, Value string
}

// The keys of a locator of type [LocatorTypeVHDX].
const (
	LocatorParentLinkage     = "parent_linkage"
	LocatorParentLinkage2    = "parent_linkage2"
	LocatorRelativePath      = "relative_path"
	LocatorVolumePath        = "volume_path"
	LocatorAbsoluteWin32Path = "absolute_win32_path"
)

// Value returns the value of key.
func (l ParentLocator) Value(key string) (string, bool) {
	i := slices.IndexFunc(l.Entries, func(e LocatorEntry) bool { return e.Key == key })
	if i < 0 {
		return "", false
	}
	return l.Entries[i].Value, true
}

// DecodeParentLocator reads the item, which is b.
func DecodeParentLocator(b []byte) (ParentLocator, error) {
	const name = "Parent Locator"
	if len(b) < locatorHeaderSize {
		return ParentLocator{}, errShort(name, len(b), locatorHeaderSize)
	}
	if len(b) > MaxMetadataItemSize {
		return ParentLocator{}, errf(name, 0, "item of %d bytes, at most %d are allowed", len(b), MaxMetadataItemSize)
	}
	count := int(le.Uint16(b[18:]))
	if count > MaxParentLocatorEntries {
		return ParentLocator{}, errf(name, 18, "%d pairs, at most %d are accepted", count, MaxParentLocatorEntries)
	}
	text := locatorHeaderSize + count*locatorEntrySize
	if text > len(b) {
		return ParentLocator{}, errf(name, 18, "%d pairs do not fit an item of %d bytes", count, len(b))
	}
	l := ParentLocator{Type: GUID(b[:16]), Entries: make([]LocatorEntry, count)}
	for i := range l.Entries {
		at := locatorHeaderSize + i*locatorEntrySize
		key, err := locatorText(b, text, le.Uint32(b[at:]), le.Uint16(b[at+8:]))
		if err != nil {
			return ParentLocator{}, errf(name, at, "key %d: %v", i, err)
		}
		value, err := locatorText(b, text, le.Uint32(b[at+4:]), le.Uint16(b[at+10:]))
		if err != nil {
			return ParentLocator{}, errf(name, at+4, "value of %q: %v", key, err)
		}
		if _, ok := l.Value(key); ok {
			return ParentLocator{}, errf(name, at, "key %q appears twice", key)
		}
		l.Entries[i] = LocatorEntry{key, value}
	}
	return l, nil
}

// locatorText reads a string of the item b, whose strings begin at text.
func locatorText(b []byte, text int, offset uint32, length uint16) (string, error) {
	switch {
	case length == 0 || length%2 != 0:
		return "", fmt.Errorf("length %d is no even number above 0", length)
	case uint64(offset) < uint64(text):
		return "", fmt.Errorf("offset %#x lies in the table", offset)
	case uint64(offset)+uint64(length) > uint64(len(b)):
		return "", fmt.Errorf("%d bytes at offset %#x reach beyond the item of %#x bytes", length, offset, len(b))
	}
	units := utf16Units(b[offset : int(offset)+int(length)])
	if slices.Contains(units, 0) || !validUTF16(units) {
		return "", fmt.Errorf("no UTF-16 text without NUL")
	}
	return string(utf16.Decode(units)), nil
}

// Encode returns the item. It refuses what [DecodeParentLocator] would refuse.
func (l ParentLocator) Encode() ([]byte, error) {
	if len(l.Entries) > MaxParentLocatorEntries {
		return nil, fmt.Errorf("parent locator of %d pairs: at most %d are allowed", len(l.Entries), MaxParentLocatorEntries)
	}
	b := make([]byte, locatorHeaderSize+len(l.Entries)*locatorEntrySize)
	copy(b, l.Type[:])
	le.PutUint16(b[18:], uint16(len(l.Entries)))
	for i, e := range l.Entries {
		if slices.ContainsFunc(l.Entries[:i], func(o LocatorEntry) bool { return o.Key == e.Key }) {
			return nil, fmt.Errorf("parent locator: key %q appears twice", e.Key)
		}
		at := locatorHeaderSize + i*locatorEntrySize
		for field, s := range [2]string{e.Key, e.Value} {
			units := utf16.Encode([]rune(s))
			if len(units) == 0 || len(units) > (1<<16-2)/2 || slices.Contains(units, 0) || !utf8.ValidString(s) {
				return nil, fmt.Errorf("parent locator: %q: not 1 to 32767 UTF-16 units without NUL", s)
			}
			le.PutUint32(b[at+4*field:], uint32(len(b)))
			le.PutUint16(b[at+8+2*field:], uint16(2*len(units)))
			start := len(b)
			b = append(b, make([]byte, 2*len(units))...)
			putUTF16(b[start:], units)
		}
	}
	if len(b) > MaxMetadataItemSize {
		return nil, fmt.Errorf("parent locator of %d bytes: at most %d are allowed", len(b), MaxMetadataItemSize)
	}
	return b, nil
}

// LocatorPaths are the keys of paths, in the order in which they are tried.
var LocatorPaths = [...]string{LocatorRelativePath, LocatorVolumePath, LocatorAbsoluteWin32Path}

// Linkage returns the DataWriteGuids that the parent may have; second is zero
// but while a merge is under way.
func (l ParentLocator) Linkage() (first, second GUID, err error) {
	text, ok := l.Value(LocatorParentLinkage)
	if !ok {
		return first, second, errf("Parent Locator", 0, "no %s", LocatorParentLinkage)
	}
	if first, err = ParseGUID(text); err != nil {
		return first, second, errf("Parent Locator", 0, "%s: %v", LocatorParentLinkage, err)
	}
	if text, ok = l.Value(LocatorParentLinkage2); ok {
		if second, err = ParseGUID(text); err != nil {
			return first, second, errf("Parent Locator", 0, "%s: %v", LocatorParentLinkage2, err)
		}
	}
	return first, second, nil
}

// Check refuses a locator that names no parent in a way this package knows.
func (l ParentLocator) Check() error {
	if l.Type != LocatorTypeVHDX {
		return errf("Parent Locator", 0, "type %v is not known", l.Type)
	}
	if _, _, err := l.Linkage(); err != nil {
		return err
	}
	for _, key := range LocatorPaths {
		if _, ok := l.Value(key); ok {
			return nil
		}
	}
	return errf("Parent Locator", 0, "no path to the parent")
}

// FormatLinkage is the text of a GUID in a locator: braces, lower case.
func FormatLinkage(g GUID) string { return "{" + g.String() + "}" }
