package vhdx

import (
	"errors"
	"fmt"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// metadata is what the metadata region says.
type metadata struct {
	region             ondisk.Region
	table              ondisk.MetadataTable
	params             ondisk.FileParameters
	diskID             ondisk.GUID
	virtualSize        int64 // at open; Image.size is the present one
	virtualSizeAt      int64 // offset of the item in the file
	logicalSectorSize  int
	physicalSectorSize int
	locator            ondisk.ParentLocator // of a differencing image
	locatorIndex       int                  // in table.Entries, or -1
}

// loadMetadata reads the table and the items this package understands. An
// unknown item is left alone unless it is required.
func loadMetadata(f File, r ondisk.Region) (metadata, error) {
	m := metadata{region: r, locatorIndex: -1}
	base := int64(r.Offset)
	room, done := borrowMiB()
	defer done()
	buf := room[:ondisk.MetadataTableSize]
	if err := readFull(f, buf, base); err != nil {
		return m, corruptRead(f, "metadata table", base, err)
	}
	var err error
	if m.table, err = ondisk.DecodeMetadataTable(buf, r.Length); err != nil {
		return m, corrupt(f, "metadata table", base, err)
	}
	decoders := m.decoders()
	found := 0
	for i, e := range m.table.Entries {
		if e.User {
			continue
		}
		if e.Item == ondisk.ItemParentLocator {
			m.locatorIndex = i
		}
		decode, known := decoders[e.Item]
		switch {
		case e.Item == ondisk.ItemIncomplete:
			return m, fmt.Errorf("%s: marked incomplete: its creation by Windows never finished; create it again: %w", f.Name(), ErrUnsupported)
		case known:
			found++
			if err := m.loadItem(f, e, decode); err != nil {
				return m, err
			}
		case e.Required && e.Item != ondisk.ItemParentLocator:
			return m, fmt.Errorf("%s: required metadata item %v is unknown: %w", f.Name(), e.Item, ErrUnsupported)
		}
	}
	if found != len(decoders) {
		return m, m.missing(f, decoders)
	}
	if err := m.check(f); err != nil {
		return m, err
	}
	return m, m.loadLocator(f)
}

type itemDecoder func(b []byte, at int64) error

// decoders lists the required items.
func (m *metadata) decoders() map[ondisk.GUID]itemDecoder {
	return map[ondisk.GUID]itemDecoder{
		ondisk.ItemFileParameters: func(b []byte, _ int64) (err error) {
			m.params, err = ondisk.DecodeFileParameters(b)
			return err
		},
		ondisk.ItemVirtualDiskSize: func(b []byte, at int64) (err error) {
			m.virtualSizeAt = at
			m.virtualSize, err = ondisk.DecodeVirtualDiskSize(b)
			return err
		},
		ondisk.ItemVirtualDiskID: func(b []byte, _ int64) (err error) {
			m.diskID, err = ondisk.DecodeVirtualDiskID(b)
			return err
		},
		ondisk.ItemLogicalSectorSize: func(b []byte, _ int64) (err error) {
			m.logicalSectorSize, err = ondisk.DecodeLogicalSectorSize(b)
			return err
		},
		ondisk.ItemPhysicalSectorSize: func(b []byte, _ int64) (err error) {
			m.physicalSectorSize, err = ondisk.DecodePhysicalSectorSize(b)
			return err
		},
	}
}

func (m *metadata) loadItem(f File, e ondisk.MetadataEntry, decode itemDecoder) error {
	at := int64(m.region.Offset) + int64(e.Offset)
	name := "metadata item " + e.Item.String()
	if e.Length > ondisk.VirtualDiskIDSize { // the longest of them
		return corrupt(f, name, at, fmt.Errorf("%d bytes long", e.Length))
	}
	b := make([]byte, e.Length)
	if err := readFull(f, b, at); err != nil {
		return corruptRead(f, name, at, err)
	}
	if err := decode(b, at); err != nil {
		return corrupt(f, name, at, err)
	}
	return nil
}

func (m *metadata) missing(f File, want map[ondisk.GUID]itemDecoder) error {
	for _, e := range m.table.Entries {
		if !e.User {
			delete(want, e.Item)
		}
	}
	for item := range want {
		return corrupt(f, "metadata table", int64(m.region.Offset), fmt.Errorf("required item %v is missing", item))
	}
	return nil
}

func (m *metadata) check(f File) error {
	if m.virtualSize%int64(m.logicalSectorSize) != 0 {
		return corrupt(f, "Virtual Disk Size", m.virtualSizeAt, fmt.Errorf("%#x is no multiple of the logical sector size %d", m.virtualSize, m.logicalSectorSize))
	}
	return nil
}

// loadLocator reads the item that names the parent, if there is one.
func (m *metadata) loadLocator(f File) error {
	if !m.params.HasParent {
		return nil // a locator without HasParent means nothing
	}
	if m.locatorIndex < 0 {
		return corrupt(f, "metadata table", int64(m.region.Offset), errors.New("a differencing image without a parent locator"))
	}
	e := m.table.Entries[m.locatorIndex]
	at := int64(m.region.Offset) + int64(e.Offset)
	b := make([]byte, e.Length)
	if err := readFull(f, b, at); err != nil {
		return corruptRead(f, "Parent Locator", at, err)
	}
	var err error
	if m.locator, err = ondisk.DecodeParentLocator(b); err != nil {
		return corrupt(f, "Parent Locator", at, err)
	}
	if m.locator.Type != ondisk.LocatorTypeVHDX {
		return fmt.Errorf("%s: parent locator of type %v: %w", f.Name(), m.locator.Type, ErrUnsupported)
	}
	if err := m.locator.Check(); err != nil {
		return corrupt(f, "Parent Locator", at, err)
	}
	return nil
}

func (m *metadata) geometry(virtualSize int64) ondisk.Geometry {
	return ondisk.Geometry{
		VirtualSize:       virtualSize,
		BlockSize:         int64(m.params.BlockSize),
		LogicalSectorSize: m.logicalSectorSize,
		HasParent:         m.params.HasParent,
	}
}
