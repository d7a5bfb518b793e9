package vhdx

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

var tableOffsets = [2]int64{ondisk.RegionTable1Offset, ondisk.RegionTable2Offset}

// checkRegions judges both copies of the region table (MS-VHDX 2.2.3). The
// first counts, or the second where the first is bad.
func (c *checker) checkRegions() error {
	var bufs [2][]byte
	var tables [2]ondisk.RegionTable
	var problems [2][]error
	var errs [2]error
	for i, off := range tableOffsets {
		bufs[i] = c.mib()[i*ondisk.RegionTableSize:][:ondisk.RegionTableSize]
		if errs[i] = readFull(c.f, bufs[i], off); errs[i] == nil {
			tables[i], problems[i], errs[i] = ondisk.InspectRegionTable(bufs[i])
		}
		if errs[i] != nil && !isFormat(errs[i]) {
			return errs[i]
		}
	}
	for i, other := range []int{1, 0} {
		if errs[i] == nil && errs[other] == nil && len(problems[i]) > 0 && len(problems[other]) == 0 {
			errs[i] = problems[i][0] // its checksum is right, but the other copy is better
		}
	}
	good := 0
	switch {
	case errs[0] != nil && errs[1] != nil:
		c.corrupt(CodeRegionTables, at("region table", tableOffsets[0]), "both copies are bad: first: %s; second: %s", reason(errs[0]), reason(errs[1]))
		return c.stop("without a region table nothing leads to metadata and BAT")
	case errs[0] != nil:
		good = 1
	}
	if bad := 1 - good; errs[bad] != nil {
		c.add(Finding{
			Code: CodeRegionTable, Severity: SeverityWarning, Place: Place{"region table", tableOffsets[bad], int64(bad) + 1},
			Text:   fmt.Sprintf("%s; copy %d is valid", reason(errs[bad]), good+1),
			Repair: "write it anew from the other copy",
		})
		c.plan.tables = true
	} else if !bytes.Equal(bufs[0], bufs[1]) {
		c.add(Finding{
			Code: CodeRegionTablesApart, Severity: SeverityWarning, Place: Place{"region table", tableOffsets[1], 2},
			Text:   "the copies differ; the first counts",
			Repair: "write it anew from the first, if that one leads to an image without damage",
		})
		c.plan.tablesApart = true
	}
	c.table, c.tableAt = tables[good], tableOffsets[good]
	if c.plan.tables || c.plan.tablesApart {
		c.plan.table = slices.Clone(bufs[good])
	}
	for _, err := range problems[good] {
		c.corrupt(CodeRegionEntry, within(at("region table", c.tableAt), err), "%s", reason(err))
	}
	return c.findRegions()
}

func (c *checker) findRegions() error {
	unknown := 0
	for i := range c.table.Regions {
		r := &c.table.Regions[i]
		switch {
		case r.ID == ondisk.RegionBAT:
			c.bat = r
		case r.ID == ondisk.RegionMetadata:
			c.meta.region, c.haveMeta = *r, true
		case r.Required:
			unknown++
			c.add(Finding{
				Code: CodeRegionUnknown, Severity: SeverityUnsupported, Place: Place{"region table", c.tableAt, int64(i)},
				Text: fmt.Sprintf("required region %v is unknown", r.ID), Advice: "open the image with the software that wrote it",
			})
			continue
		default:
			continue
		}
		if !r.Required {
			c.note(CodeRegionFlags, Place{"region table", c.tableAt, int64(i)}, "region %v is not marked as required; VirtualBox refuses that (QEMU writes it so)", r.ID)
		}
	}
	if unknown > 0 {
		c.r.Stopped = fmt.Sprintf("%d required regions are unknown", unknown)
	}
	if c.bat == nil || !c.haveMeta {
		c.corrupt(CodeRegionMissing, at("region table", c.tableAt), "it names no BAT or no metadata region")
		return c.stop("BAT or metadata cannot be found")
	}
	return nil
}

// checkPlaces judges where log and regions lie: in the file, and apart.
func (c *checker) checkPlaces() error {
	c.places = structures{}
	if err := c.places.add(c.space, "header section", 0, ondisk.HeaderSectionSize); err != nil {
		return err
	}
	for i, r := range c.table.Regions {
		p := Place{"region table", c.tableAt, int64(i)}
		off, length := int64(r.Offset), int64(r.Length)
		if off+length > maxFileSize || off+length > roundUp(c.r.FileSize, ondisk.MiB) {
			c.corrupt(CodeRegionPlace, p, "region %v of %#x bytes at %#x reaches beyond the file's end at %#x", r.ID, length, off, c.r.FileSize)
			continue
		}
		if err := c.places.add(c.space, regionName(r.ID), off, length); err != nil {
			c.corrupt(CodeRegionPlace, p, "region %v: %v", r.ID, err)
		}
	}
	return c.placeLog()
}

// placeLog comes last: a log that lies over something else is the one that can
// go elsewhere, for it is empty by then.
func (c *checker) placeLog() error {
	h := c.im.headers.current
	if h.LogLength == 0 || c.plan.moveLog {
		return nil
	}
	p := at("header", headerOffsets[c.im.headers.slot])
	off, length := int64(h.LogOffset), int64(h.LogLength)
	var err error
	if off+length > roundUp(c.r.FileSize, ondisk.MiB) {
		err = fmt.Errorf("%#x bytes at %#x reach beyond the file's end at %#x", length, off, c.r.FileSize)
	} else if name := c.places.at(off, length); name != "" {
		err = fmt.Errorf("%#x bytes at %#x overlap the %s", length, off, name)
	} else {
		return c.places.add(c.space, logName, off, length)
	}
	c.add(Finding{Code: CodeLogPlace, Severity: SeverityCorrupt, Place: p, Text: "log: " + err.Error(), Repair: "give the log a new place"})
	c.plan.moveLog = true
	return nil
}

func regionName(id ondisk.GUID) string {
	switch id {
	case ondisk.RegionBAT:
		return "BAT region"
	case ondisk.RegionMetadata:
		return "metadata region"
	}
	return "region " + id.String()
}
