package ondisk

import (
	"fmt"
	"strings"

	"github.com/google/uuid"
)

// GUID is an identifier in the byte order of the disk: the first three groups
// of its text form little-endian, the last two as written. It is never a
// [uuid.UUID], whose bytes are all in the order of the text.
type GUID [16]byte

// guid writes an identifier the way the specification prints it.
func guid(d1 uint32, d2, d3 uint16, d4 uint64) (g GUID) {
	le.PutUint32(g[0:], d1)
	le.PutUint16(g[4:], d2)
	le.PutUint16(g[6:], d3)
	for i := range 8 {
		g[8+i] = byte(d4 >> (56 - 8*i))
	}
	return g
}

// The identifiers of the specification, and those Windows is known to use.
var (
	RegionBAT      = guid(0x2DC27766, 0xF623, 0x4200, 0x9D64115E9BFD4A08)
	RegionMetadata = guid(0x8B7CA206, 0x4790, 0x4B9A, 0xB8FE575F050F886E)

	ItemFileParameters     = guid(0xCAA16737, 0xFA36, 0x4D43, 0xB3B633F0AA44E76B)
	ItemVirtualDiskSize    = guid(0x2FA54224, 0xCD1B, 0x4876, 0xB2115DBED83BF4B8)
	ItemVirtualDiskID      = guid(0xBECA12AB, 0xB2E6, 0x4523, 0x93EFC309E000C746) // Page 83 data
	ItemLogicalSectorSize  = guid(0x8141BF1D, 0xA96F, 0x4709, 0xBA47F233A8FAAB5F)
	ItemPhysicalSectorSize = guid(0xCDA348C7, 0x445D, 0x4471, 0x9CC9E9885251C556)
	ItemParentLocator      = guid(0xA8D35F2D, 0xB30B, 0x454D, 0xABF7D3D84834AB0C)
	// ItemIncomplete marks a file that Windows is still creating.
	ItemIncomplete = guid(0x71CC85F0, 0x1B69, 0x4E28, 0x9558C3BF83AE75D3)

	// ItemCHS and ItemPMEMLabels are hints to Windows about the device.
	ItemCHS        = guid(0xDA02D7BC, 0x3D3A, 0x423C, 0xAC882A36AB21479B)
	ItemPMEMLabels = guid(0x10E1AE8A, 0x4B7E, 0x4169, 0xA40FCD70DE928393)

	// LocatorTypeVHDX is the only type of parent locator.
	LocatorTypeVHDX = guid(0xB04AEFB7, 0xD19E, 0x4A81, 0xB78925B8E9445913)
)

// NewGUID returns a random GUID.
func NewGUID() GUID { return FromUUID(uuid.New()) }

// FromUUID converts from the byte order of the text form.
func FromUUID(u uuid.UUID) GUID { return GUID(swapGroups(u)) }

// UUID converts to the byte order of the text form.
func (g GUID) UUID() uuid.UUID { return uuid.UUID(swapGroups(g)) }

// IsZero reports whether all bits are zero.
func (g GUID) IsZero() bool { return g == GUID{} }

// String is the text form in lower case without braces.
func (g GUID) String() string { return g.UUID().String() }

// ParseGUID reads the text form in either case, with or without braces.
func ParseGUID(s string) (GUID, error) {
	text, open := strings.CutPrefix(s, "{")
	text, closed := strings.CutSuffix(text, "}")
	if open != closed || len(text) != 36 {
		return GUID{}, fmt.Errorf("parse GUID %.60q: not of the form 00000000-0000-0000-0000-000000000000, in braces or not", s)
	}
	u, err := uuid.Parse(text)
	if err != nil {
		return GUID{}, fmt.Errorf("parse GUID %.60q: %w", s, err)
	}
	return FromUUID(u), nil
}

// swapGroups reverses the first three groups; it is its own inverse.
func swapGroups(b [16]byte) [16]byte {
	b[0], b[1], b[2], b[3] = b[3], b[2], b[1], b[0]
	b[4], b[5] = b[5], b[4]
	b[6], b[7] = b[7], b[6]
	return b
}
