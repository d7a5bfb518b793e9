package vhdx

import (
	"context"
	"errors"
	"fmt"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// Dump shows the structures of an image as they lie in the file, sound or not.
// A dirty log that can be replayed is applied in memory first.
type Dump struct {
	c *checker
	// Dirty: what is shown, but for headers and log, is with the log applied.
	Dirty bool
}

// NewDump reads from f, which stays open, what leads to the structures. The
// error says that f is no VHDX file or cannot be read; how far the structures
// lead is for the methods to tell.
func NewDump(ctx context.Context, f File) (*Dump, error) {
	c := newChecker(ctx, f, CheckOptions{})
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	c.r.FileSize, c.im.fileEnd = size, min(size, maxFileSize)
	for _, step := range []func() error{c.checkHead, c.checkLog, c.checkRegions, c.checkMetadata} {
		if err := step(); errors.Is(err, errStopped) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("dump %s: %w", f.Name(), err)
		}
	}
	return &Dump{c: c, Dirty: c.plan.replay}, nil
}

// need reports why something cannot be shown.
func (d *Dump) need(what string, there bool) error {
	switch {
	case there:
		return nil
	case d.c.r.Stopped != "":
		return fmt.Errorf("%s: no %s to show: %s: %w", d.c.r.File, what, d.c.r.Stopped, ErrCorrupt)
	}
	return fmt.Errorf("%s: no %s to show: %w", d.c.r.File, what, ErrCorrupt)
}

// DumpedHeader is a header slot (MS-VHDX 2.2.2).
type DumpedHeader struct {
	Slot           int    `json:"slot"` // 1 or 2
	Offset         int64  `json:"offset"`
	Current        bool   `json:"current"`
	Problem        string `json:"problem,omitempty"` // "": valid
	SequenceNumber uint64 `json:"sequenceNumber"`
	FileWriteGUID  string `json:"fileWriteGUID"`
	DataWriteGUID  string `json:"dataWriteGUID"`
	LogGUID        string `json:"logGUID"` // all zero: the log is empty
	LogVersion     uint16 `json:"logVersion"`
	Version        uint16 `json:"version"`
	LogOffset      uint64 `json:"logOffset"`
	LogLength      uint32 `json:"logLength"`
}

// Headers returns both slots.
func (d *Dump) Headers() ([]DumpedHeader, error) {
	slots, errs, err := readHeaders(d.c.raw)
	if err != nil {
		return nil, err
	}
	current, err := ondisk.CurrentHeader(slots[0], errs[0], slots[1], errs[1])
	if err != nil {
		current = none
	}
	var all []DumpedHeader
	for i, h := range slots {
		dumped := DumpedHeader{Slot: i + 1, Offset: headerOffsets[i], Current: i == current}
		if errs[i] != nil {
			dumped.Problem = reason(errs[i])
			all = append(all, dumped)
			continue
		}
		if err := h.Validate(); err != nil {
			dumped.Problem = reason(err)
		}
		dumped.SequenceNumber = h.SequenceNumber
		dumped.FileWriteGUID, dumped.DataWriteGUID, dumped.LogGUID = h.FileWriteGUID.String(), h.DataWriteGUID.String(), h.LogGUID.String()
		dumped.LogVersion, dumped.Version, dumped.LogOffset, dumped.LogLength = h.LogVersion, h.Version, h.LogOffset, h.LogLength
		all = append(all, dumped)
	}
	return all, nil
}

// DumpedTable is a copy of the region table (MS-VHDX 2.2.3).
type DumpedTable struct {
	Copy     int            `json:"copy"` // 1 or 2
	Offset   int64          `json:"offset"`
	Used     bool           `json:"used"`
	Problems []string       `json:"problems,omitempty"`
	Regions  []DumpedRegion `json:"regions"`
}

// DumpedRegion is an entry of the region table.
type DumpedRegion struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Offset   uint64 `json:"offset"`
	Length   uint32 `json:"length"`
	Required bool   `json:"required"`
}

// Regions returns both copies of the region table.
func (d *Dump) Regions() ([]DumpedTable, error) {
	var all []DumpedTable
	buf := alignedBytes(ondisk.RegionTableSize)
	for i, off := range tableOffsets {
		t := DumpedTable{Copy: i + 1, Offset: off, Used: d.c.tableAt == off, Regions: []DumpedRegion{}}
		var table ondisk.RegionTable
		var problems []error
		err := readFull(d.c.f, buf, off)
		if err == nil {
			table, problems, err = ondisk.InspectRegionTable(buf)
		}
		if err != nil && !isFormat(err) {
			return nil, err
		}
		if err != nil {
			problems = append(problems, err)
		}
		for _, p := range problems {
			t.Problems = append(t.Problems, reason(p))
		}
		for _, r := range table.Regions {
			t.Regions = append(t.Regions, DumpedRegion{r.ID.String(), regionName(r.ID), r.Offset, r.Length, r.Required})
		}
		all = append(all, t)
	}
	return all, nil
}

// DumpedItem is a metadata item with what it says.
type DumpedItem struct {
	MetadataItem
	Value   string `json:"value,omitempty"` // of an item that this package understands
	Problem string `json:"problem,omitempty"`
}

// Metadata returns the items, in the order of the table.
func (d *Dump) Metadata() ([]DumpedItem, error) {
	c := d.c
	if err := d.need("metadata", len(c.meta.table.Entries) > 0); err != nil {
		return nil, err
	}
	var all []DumpedItem
	for _, e := range c.meta.table.Entries {
		item := DumpedItem{MetadataItem: newMetadataItem(c.meta.region, e)}
		if !e.User {
			value, err := d.value(e)
			if err != nil && !isFormat(err) {
				return nil, err
			}
			if err != nil {
				item.Problem = reason(err)
			}
			item.Value = value
		}
		all = append(all, item)
	}
	return all, nil
}

// value says what a system item says.
func (d *Dump) value(e ondisk.MetadataEntry) (string, error) {
	if itemNames[e.Item] == "" || e.Length > 64*ondisk.KiB {
		return "", nil
	}
	b := make([]byte, e.Length)
	if err := readFull(d.c.f, b, int64(d.c.meta.region.Offset)+int64(e.Offset)); err != nil {
		return "", err
	}
	switch e.Item {
	case ondisk.ItemFileParameters:
		p, err := ondisk.DecodeFileParameters(b)
		return fmt.Sprintf("blocks of %d bytes, leave blocks allocated %v, has parent %v", p.BlockSize, p.LeaveBlocksAllocated, p.HasParent), err
	case ondisk.ItemVirtualDiskSize:
		size, err := ondisk.DecodeVirtualDiskSize(b)
		return fmt.Sprintf("%d bytes", size), err
	case ondisk.ItemVirtualDiskID:
		id, err := ondisk.DecodeVirtualDiskID(b)
		return id.String(), err
	case ondisk.ItemLogicalSectorSize, ondisk.ItemPhysicalSectorSize:
		size, err := ondisk.DecodeLogicalSectorSize(b)
		return fmt.Sprintf("%d bytes", size), err
	case ondisk.ItemParentLocator:
		l, err := ondisk.DecodeParentLocator(b)
		s := "type " + l.Type.String()
		for _, pair := range l.Entries {
			s += fmt.Sprintf(", %s=%q", pair.Key, pair.Value)
		}
		return s, err
	}
	return "", nil
}
