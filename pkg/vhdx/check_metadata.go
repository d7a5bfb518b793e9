package vhdx

import (
	"fmt"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// itemNames are the specification's names of the items, and those of items
// that only Windows writes.
var itemNames = map[ondisk.GUID]string{
	ondisk.ItemFileParameters:     "File Parameters",
	ondisk.ItemVirtualDiskSize:    "Virtual Disk Size",
	ondisk.ItemVirtualDiskID:      "Virtual Disk ID",
	ondisk.ItemLogicalSectorSize:  "Logical Sector Size",
	ondisk.ItemPhysicalSectorSize: "Physical Sector Size",
	ondisk.ItemParentLocator:      "Parent Locator",
	ondisk.ItemIncomplete:         "incomplete file marker",
	ondisk.ItemCHS:                "CHS parameters",
	ondisk.ItemPMEMLabels:         "PMEM label storage area",
}

func itemName(id ondisk.GUID) string {
	if name, ok := itemNames[id]; ok {
		return name
	}
	return "item " + id.String()
}

// checkMetadata judges the metadata table and every item that this package
// understands (MS-VHDX 2.6).
func (c *checker) checkMetadata() error {
	r := c.meta.region
	base := int64(r.Offset)
	p := at("metadata table", base)
	buf := c.mib()[:ondisk.MetadataTableSize]
	whole, err := c.read(buf, base)
	switch {
	case err != nil:
		return err
	case !whole:
		c.corrupt(CodeMetadataTable, p, "the file of %#x bytes ends inside it", c.r.FileSize)
		return c.stop("the metadata cannot be read")
	}
	table, problems, err := ondisk.InspectMetadataTable(buf, r.Length)
	if err != nil {
		c.corrupt(CodeMetadataTable, within(p, err), "%s", reason(err))
		return c.stop("the metadata cannot be read")
	}
	c.meta.table = table
	for _, problem := range problems {
		c.corrupt(CodeMetadataEntry, within(p, problem), "%s", reason(problem))
	}
	if err := c.checkItems(); err != nil {
		return err
	}
	return c.judgeMetadata()
}

// checkItems decodes the items.
func (c *checker) checkItems() error {
	decoders := c.meta.decoders()
	missing := c.meta.decoders()
	stop := ""
	for i, e := range c.meta.table.Entries {
		p := Place{"metadata item", int64(c.meta.region.Offset) + int64(e.Offset), int64(i)}
		if e.User {
			continue
		}
		decode, known := decoders[e.Item]
		switch {
		case e.Item == ondisk.ItemIncomplete:
			c.add(Finding{
				Code: CodeFileIncomplete, Severity: SeverityCorrupt, Place: p,
				Text: "the file is marked incomplete: its creation by Windows never finished", Advice: "create it again",
			})
		case e.Item == ondisk.ItemParentLocator:
			if err := c.loadLocator(e, p); err != nil {
				return err
			}
		case known:
			delete(missing, e.Item)
			c.checkFlags(e, p)
			if err := c.meta.loadItem(c.f, e, decode); err != nil && !isFormat(err) {
				return err
			} else if err != nil {
				c.corrupt(CodeMetadataItem, p, "%s: %s", itemName(e.Item), reason(err))
				stop = "an item that the rest depends on is damaged"
			}
		case e.Required:
			c.add(Finding{
				Code: CodeMetadataUnknown, Severity: SeverityUnsupported, Place: p,
				Text: fmt.Sprintf("required %s is unknown", itemName(e.Item)), Advice: "open the image with the software that wrote it",
			})
		}
	}
	for id := range missing {
		c.corrupt(CodeMetadataMissing, at("metadata table", int64(c.meta.region.Offset)), "%s is missing", itemName(id))
		stop = "an item that the rest depends on is missing"
	}
	if stop != "" {
		return c.stop("%s", stop)
	}
	return nil
}

// checkFlags compares an item's flags with the specification's (2.6.2).
func (c *checker) checkFlags(e ondisk.MetadataEntry, p Place) {
	disk := e.Item != ondisk.ItemFileParameters && e.Item != ondisk.ItemParentLocator
	if !e.Required || e.VirtualDisk != disk {
		c.note(CodeMetadataFlags, p, "%s: flags virtual disk %v, required %v, should be %v, true; strict software refuses that",
			itemName(e.Item), e.VirtualDisk, e.Required, disk)
	}
}

// judgeMetadata judges what no single item shows.
func (c *checker) judgeMetadata() error {
	m := &c.meta
	p := at("metadata region", int64(m.region.Offset))
	if m.virtualSize%int64(m.logicalSectorSize) != 0 {
		c.corrupt(CodeMetadataItem, at("Virtual Disk Size", m.virtualSizeAt), "%#x is no multiple of the logical sector size %d", m.virtualSize, m.logicalSectorSize)
	}
	hasLocator := c.locator != nil
	switch {
	case m.params.HasParent && !hasLocator:
		c.corrupt(CodeParentLocator, p, "the image has a parent, and no Parent Locator names it")
	case !m.params.HasParent && hasLocator:
		c.add(Finding{
			Code: CodeParentLocator, Severity: SeverityWarning, Place: p,
			Text: "there is a Parent Locator, but the image is not marked as having a parent: it is read without one",
		})
	}
	c.geometry = m.geometry(m.virtualSize)
	c.r.VirtualSize, c.r.BlockSize, c.r.Blocks = m.virtualSize, c.geometry.BlockSize, c.geometry.PayloadBlocks()
	return nil
}

// loadLocator reads the Parent Locator.
func (c *checker) loadLocator(e ondisk.MetadataEntry, p Place) error {
	c.checkFlags(e, p)
	c.locatorAt = p.Offset
	c.locator = &ondisk.ParentLocator{} // there is one, whatever it holds
	b := make([]byte, e.Length)
	whole, err := c.read(b, p.Offset)
	if err != nil {
		return err
	}
	l, err := ondisk.DecodeParentLocator(b)
	switch {
	case !whole:
		c.corrupt(CodeParentLocator, p, "the file ends inside it")
		return nil
	case err != nil:
		c.corrupt(CodeParentLocator, within(p, err), "%s", reason(err))
		return nil
	}
	*c.locator = l
	c.judgeLocator(l, p)
	return nil
}

// judgeLocator looks at what the locator says (2.6.2.6).
func (c *checker) judgeLocator(l ondisk.ParentLocator, p Place) {
	if l.Type != ondisk.LocatorTypeVHDX {
		c.add(Finding{
			Code: CodeParentLocator, Severity: SeverityUnsupported, Place: p,
			Text: fmt.Sprintf("locator of type %v, only %v is known", l.Type, ondisk.LocatorTypeVHDX),
		})
		return
	}
	for _, key := range []string{ondisk.LocatorParentLinkage, ondisk.LocatorParentLinkage2} {
		value, ok := l.Value(key)
		_, err := ondisk.ParseGUID(value)
		switch {
		case !ok && key == ondisk.LocatorParentLinkage:
			c.corrupt(CodeParentLocator, p, "%s is missing", key)
		case ok && err != nil:
			c.corrupt(CodeParentLocator, p, "%s: %v", key, err)
		case ok && key == ondisk.LocatorParentLinkage2:
			c.add(Finding{
				Code: CodeMergeUnfinished, Severity: SeverityWarning, Place: p,
				Text: key + " is set: a merge into the parent has not finished", Advice: "finish the merge with the software that began it",
			})
		}
	}
	paths := 0
	for _, key := range []string{ondisk.LocatorRelativePath, ondisk.LocatorVolumePath, ondisk.LocatorAbsoluteWin32Path} {
		if _, ok := l.Value(key); ok {
			paths++
		}
	}
	if paths == 0 {
		c.corrupt(CodeParentLocator, p, "it holds no path to the parent")
	}
}
