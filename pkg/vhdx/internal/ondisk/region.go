package ondisk

import (
	"fmt"
	"math"
)

// RegionTable is one of the two copies of the region table (MS-VHDX 2.2.3).
//
//	 0  4  signature "regi"
//	 4  4  CRC-32C of the 65,536 bytes
//	 8  4  EntryCount, at most 2,047
//	12  4  reserved
//	16     entries
type RegionTable struct {
	Regions []Region
}

// Region is an entry of the region table.
//
//	 0  16  ID        unique in the table
//	16   8  Offset    in the file, multiple of 1 MiB, at least 1 MiB
//	24   4  Length    multiple of 1 MiB
//	28   4  Required  bit 0: who does not know the region must not open the file
type Region struct {
	ID       GUID
	Offset   uint64
	Length   uint32
	Required bool
}

// DecodeRegionTable reads the 64 KiB of one copy. Offset plus Length of every
// region fits an int64; overlap is the caller's to find.
func DecodeRegionTable(b []byte) (RegionTable, error) {
	t, problems, err := InspectRegionTable(b)
	if err == nil && len(problems) > 0 {
		err = problems[0]
	}
	if err != nil {
		return RegionTable{}, err
	}
	return t, nil
}

// InspectRegionTable is [DecodeRegionTable] for who wants to see all of a
// broken table: regions that break a rule are left out of the table and told
// as problems. The error says that there is no table to speak of.
func InspectRegionTable(b []byte) (RegionTable, []error, error) {
	const name = "region table"
	if len(b) < RegionTableSize {
		return RegionTable{}, nil, errShort(name, len(b), RegionTableSize)
	}
	b = b[:RegionTableSize]
	if err := checkSignature(name, b, signatureRegionTable); err != nil {
		return RegionTable{}, nil, err
	}
	if err := checkChecksum(name, b, regionChecksumField); err != nil {
		return RegionTable{}, nil, err
	}
	count := le.Uint32(b[8:])
	if count > MaxRegionEntries {
		return RegionTable{}, nil, errf(name, 8, "%d entries, at most %d are allowed", count, MaxRegionEntries)
	}
	t := RegionTable{Regions: make([]Region, 0, count)}
	var problems []error
	seen := make(map[GUID]bool, count)
	for i := range int(count) {
		at := regionHeaderSize + i*regionEntrySize
		r := decodeRegion(b[at:])
		field, err := r.check()
		switch {
		case err != nil:
			problems = append(problems, errf(name, at+field, "entry %d (%v): %v", i, r.ID, err))
		case seen[r.ID]:
			problems = append(problems, errf(name, at, "entry %d repeats region %v", i, r.ID))
		default:
			seen[r.ID] = true
			t.Regions = append(t.Regions, r)
		}
	}
	return t, problems, nil
}

func decodeRegion(b []byte) Region {
	return Region{
		ID:       GUID(b[:16]),
		Offset:   le.Uint64(b[16:]),
		Length:   le.Uint32(b[24:]),
		Required: b[28]&1 != 0,
	}
}

// check returns the broken rule and the offset of its field in the entry.
func (r Region) check() (field int, err error) {
	switch {
	case r.Offset%Alignment != 0:
		return 16, fmt.Errorf("offset %#x is no multiple of 1 MiB", r.Offset)
	case r.Offset < HeaderSectionSize:
		return 16, fmt.Errorf("offset %#x lies in the header section", r.Offset)
	case r.Length == 0 || r.Length%Alignment != 0:
		return 24, fmt.Errorf("length %#x is no multiple of 1 MiB above 0", r.Length)
	case r.Offset > math.MaxInt64-uint64(r.Length):
		return 16, fmt.Errorf("offset %#x plus length %#x overflows", r.Offset, r.Length)
	}
	return 0, nil
}

// Encode writes the table to the first 64 KiB of dst, checksum included. It
// refuses what [DecodeRegionTable] would refuse, but for repeated regions.
func (t RegionTable) Encode(dst []byte) error {
	if len(dst) < RegionTableSize {
		return errShort("region table", len(dst), RegionTableSize)
	}
	if len(t.Regions) > MaxRegionEntries {
		return fmt.Errorf("region table of %d entries: at most %d are allowed", len(t.Regions), MaxRegionEntries)
	}
	dst = dst[:RegionTableSize]
	clear(dst)
	signature(dst, signatureRegionTable)
	le.PutUint32(dst[8:], uint32(len(t.Regions)))
	for i, r := range t.Regions {
		if _, err := r.check(); err != nil {
			return fmt.Errorf("region %v: %w", r.ID, err)
		}
		e := dst[regionHeaderSize+i*regionEntrySize:]
		copy(e, r.ID[:])
		le.PutUint64(e[16:], r.Offset)
		le.PutUint32(e[24:], r.Length)
		if r.Required {
			e[28] = 1
		}
	}
	le.PutUint32(dst[regionChecksumField:], Checksum(dst, regionChecksumField))
	return nil
}
