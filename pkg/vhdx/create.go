package vhdx

import (
	"errors"
	"fmt"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// CreateOn writes a new image into the empty file f and syncs it. f stays open
// and, after an error, in a state that does not open.
//
// Write order: space → region tables, metadata, BAT → sync → file identifier,
// headers → sync. Nothing opens a file without identifier and headers, and
// once one of the headers is there, all that it leads to is durable.
//
// Layout, as Windows lays it out (MiB):
//
//	0  header section | 1  log | metadata (1) | BAT | payload blocks
//
// All before the payload is written, not just reserved: no later write of
// metadata needs space, or a change of the filesystem's own mapping.
func CreateOn(f File, o CreateOptions) (Created, error) {
	done, err := o.complete()
	if err != nil {
		return Created{}, fmt.Errorf("create %s: %w", f.Name(), err)
	}
	c := &creation{f: f, o: done.Options}
	if err := c.run(); err != nil {
		return Created{}, fmt.Errorf("create %s: %w", f.Name(), err)
	}
	return done, nil
}

const (
	createChunk    = ondisk.MiB // of zeros, BAT entries or metadata, written at once
	createAllocate = 16 << 30   // reserved at once, so that Progress is told now and then
	locatorRoom    = 128 << 10  // two paths of the greatest length
)

// creation is a CreateOn under way.
type creation struct {
	f File
	o CreateOptions // complete

	link *parentLink // whose disk it is, and what a differencing image lies on; nil: a disk of its own

	metadata                                 []byte // table and items
	metadataLength                           int64  // of the region
	metadataOffset, batOffset, payloadOffset int64
	geometry                                 ondisk.Geometry
}

func (c *creation) run() error {
	size, err := c.f.Size()
	if err != nil {
		return err
	}
	if size != 0 {
		return fmt.Errorf("the file has %d bytes already: %w", size, ErrInvalid)
	}
	c.geometry = ondisk.Geometry{VirtualSize: c.o.Size, BlockSize: c.o.BlockSize, LogicalSectorSize: c.o.LogicalSectorSize, HasParent: c.hasParent()}
	if c.metadata, err = c.encodeMetadata(); err != nil {
		return err
	}
	c.metadataLength = roundUp(int64(len(c.metadata))+locatorRoom, ondisk.MiB)
	c.metadataOffset = ondisk.HeaderSectionSize + c.o.LogSize
	c.batOffset = c.metadataOffset + c.metadataLength
	c.payloadOffset = c.batOffset + c.geometry.BATLength()
	for _, step := range []func() error{c.allocate, c.zeroMetadata, c.writeBAT, c.writeMetadata, c.writeRegions, c.f.Sync, c.writeHeaders, c.f.Sync} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// allocate makes the file as long as it will be, with the payload of a fixed
// image in place: a full filesystem shows here, before anything is written.
func (c *creation) allocate() error {
	end := c.payloadOffset
	if c.o.Fixed {
		end += c.geometry.PayloadBlocks() * c.o.BlockSize
	}
	if err := c.f.Truncate(end); err != nil {
		return err
	}
	a, ok := c.f.(Allocator)
	for off := c.payloadOffset; off < end; {
		n := min(end-off, createAllocate)
		err := errors.ErrUnsupported
		if ok {
			err = a.Allocate(off, n)
		}
		if errors.Is(err, errors.ErrUnsupported) {
			ok, n = false, min(end-off, createChunk)
			_, err = c.f.WriteAt(zeros[:n], off)
		}
		if err != nil {
			return err
		}
		if off += n; c.o.Progress != nil {
			if err := c.o.Progress(off-c.payloadOffset, end-c.payloadOffset); err != nil {
				return err
			}
		}
	}
	return nil
}

// zeroMetadata writes everything before the payload with zeros, a dynamic
// image's BAT (NOT_PRESENT throughout) among it.
func (c *creation) zeroMetadata() error {
	for off := int64(0); off < c.payloadOffset; off += createChunk {
		if _, err := c.f.WriteAt(zeros[:min(createChunk, c.payloadOffset-off)], off); err != nil {
			return err
		}
	}
	return nil
}

// writeBAT writes a fixed image's BAT: every block present, in order.
func (c *creation) writeBAT() error {
	if !c.o.Fixed {
		return nil
	}
	const perChunk = createChunk / ondisk.BATEntrySize
	entries := c.geometry.Entries()
	buf := alignedBytes(int(roundUp(min(perChunk, entries)*ondisk.BATEntrySize, ondisk.PageSize)))
	for first := int64(0); first < entries; first += perChunk {
		n := min(perChunk, entries-first)
		pages := buf[:roundUp(n*ondisk.BATEntrySize, ondisk.PageSize)]
		clear(pages)
		for i := range n {
			if index := first + i; !c.geometry.IsBitmap(index) {
				off := c.payloadOffset + c.geometry.BlockOf(index)*c.o.BlockSize
				ondisk.MakeBATEntry(ondisk.BlockFullyPresent, off).Encode(pages, int(i))
			}
		}
		if _, err := c.f.WriteAt(pages, c.batOffset+first*ondisk.BATEntrySize); err != nil {
			return err
		}
	}
	return nil
}

// items lists the metadata items. The locator of a child stands last, with
// room behind it for a longer one.
func (c *creation) items() []metadataItem {
	item := func(id ondisk.GUID, disk bool, size int, encode func(dst []byte)) metadataItem {
		data := make([]byte, size)
		encode(data)
		return metadataItem{ondisk.MetadataEntry{Item: id, VirtualDisk: disk, Required: true}, data}
	}
	params := ondisk.FileParameters{BlockSize: uint32(c.o.BlockSize), LeaveBlocksAllocated: c.o.Fixed, HasParent: c.hasParent()}
	id := ondisk.NewGUID()
	if c.link != nil {
		id = c.link.diskID
	}
	all := []metadataItem{
		item(ondisk.ItemFileParameters, false, ondisk.FileParametersSize, params.Encode),
		item(ondisk.ItemVirtualDiskSize, true, ondisk.VirtualDiskSizeSize, func(dst []byte) { ondisk.EncodeVirtualDiskSize(dst, c.o.Size) }),
		item(ondisk.ItemVirtualDiskID, true, ondisk.VirtualDiskIDSize, func(dst []byte) { ondisk.EncodeVirtualDiskID(dst, id) }),
		item(ondisk.ItemLogicalSectorSize, true, ondisk.SectorSizeSize, func(dst []byte) { ondisk.EncodeSectorSize(dst, c.o.LogicalSectorSize) }),
		item(ondisk.ItemPhysicalSectorSize, true, ondisk.SectorSizeSize, func(dst []byte) { ondisk.EncodeSectorSize(dst, c.o.PhysicalSectorSize) }),
	}
	if c.link == nil {
		return all
	}
	all = append(all, c.link.items...)
	if !c.hasParent() {
		return all
	}
	locator := metadataItem{ondisk.MetadataEntry{Item: ondisk.ItemParentLocator, Required: true}, c.link.locator}
	return append(all, locator)
}

func (c *creation) hasParent() bool { return c.link != nil && c.link.locator != nil }

// encodeMetadata returns the table and the items, which follow it in its
// order: what lies at the start of the metadata region.
func (c *creation) encodeMetadata() ([]byte, error) {
	b := make([]byte, ondisk.MetadataTableSize)
	var table ondisk.MetadataTable
	for _, item := range c.items() {
		item.entry.Offset, item.entry.Length = uint32(len(b)), uint32(len(item.data))
		if len(item.data) == 0 {
			item.entry.Offset = 0
		}
		b = append(b, item.data...)
		table.Entries = append(table.Entries, item.entry)
	}
	return b, table.Encode(b)
}

func (c *creation) writeMetadata() error {
	buf := alignedBytes(min(createChunk, roundUp(len(c.metadata), ondisk.PageSize)))
	for done := 0; done < len(c.metadata); done += len(buf) {
		n := copy(buf, c.metadata[done:])
		pages := buf[:roundUp(n, ondisk.PageSize)]
		clear(pages[n:])
		if _, err := c.f.WriteAt(pages, c.metadataOffset+int64(done)); err != nil {
			return err
		}
	}
	return nil
}

// writeRegions writes both copies of the region table.
func (c *creation) writeRegions() error {
	table := ondisk.RegionTable{Regions: []ondisk.Region{
		{ID: ondisk.RegionBAT, Offset: uint64(c.batOffset), Length: uint32(c.geometry.BATLength()), Required: true},
		{ID: ondisk.RegionMetadata, Offset: uint64(c.metadataOffset), Length: uint32(c.metadataLength), Required: true},
	}}
	b := alignedBytes(2 * ondisk.RegionTableSize) // one behind the other
	for copies := b; len(copies) > 0; copies = copies[ondisk.RegionTableSize:] {
		if err := table.Encode(copies[:ondisk.RegionTableSize]); err != nil {
			return err
		}
	}
	_, err := c.f.WriteAt(b, ondisk.RegionTable1Offset)
	return err
}

// writeHeaders writes the file identifier and both headers, which differ in
// nothing but the sequence number.
func (c *creation) writeHeaders() error {
	b := alignedBytes(int(headerOffsets[1] + ondisk.HeaderSize))
	if err := (ondisk.FileIdentifier{Creator: c.o.Creator}).Encode(b[:ondisk.IdentifierSize]); err != nil {
		return err
	}
	h := ondisk.Header{
		SequenceNumber: 1,
		FileWriteGUID:  ondisk.NewGUID(),
		DataWriteGUID:  ondisk.NewGUID(),
		Version:        ondisk.FormatVersion,
		LogLength:      uint32(c.o.LogSize),
		LogOffset:      ondisk.HeaderSectionSize,
	}
	for _, off := range headerOffsets {
		one := b[off : off+ondisk.HeaderSize]
		h.Encode(one)
		if back, err := ondisk.DecodeHeader(one); err != nil || back != h {
			return fmt.Errorf("header does not read back as it was encoded: %+v: %w", back, err)
		}
		h.SequenceNumber++
	}
	_, err := c.f.WriteAt(b, 0) // what lies between them is zero already
	return err
}
