package vhdx

import (
	"cmp"
	"fmt"
	"slices"
)

// Severity says what a [Finding] means for the image.
type Severity string

// The severities, lightest first.
const (
	// SeverityNote: allowed, but worth knowing. Never repaired.
	SeverityNote Severity = "note"
	// SeverityWarning: breaks a rule, and what the disk shows is not in doubt.
	SeverityWarning Severity = "warning"
	// SeverityLeak: space that nothing refers to.
	SeverityLeak Severity = "leak"
	// SeverityUnsupported: the image needs something this package lacks.
	SeverityUnsupported Severity = "unsupported"
	// SeverityCorrupt: the image does not open, or what its disk shows is in doubt.
	SeverityCorrupt Severity = "corrupt"
)

// Code names a kind of [Finding]. Codes do not change their meaning.
type Code string

// The codes, by structure.
const (
	CodeIdentifier        Code = "identifier"
	CodeHeaderInvalid     Code = "header-invalid"
	CodeHeadersInvalid    Code = "headers-invalid"
	CodeHeadersAmbiguous  Code = "headers-ambiguous"
	CodeHeadersDiffer     Code = "headers-differ"
	CodeHeaderField       Code = "header-field"
	CodeVersion           Code = "version"
	CodeLogDirty          Code = "log-dirty"
	CodeLogLost           Code = "log-lost"
	CodeLogPayload        Code = "log-payload"
	CodeLogGap            Code = "log-gap"
	CodeLogNone           Code = "log-none"
	CodeLogPlace          Code = "log-place"
	CodeFileTruncated     Code = "file-truncated"
	CodeFileUnaligned     Code = "file-unaligned"
	CodeFileIncomplete    Code = "file-incomplete"
	CodeRegionTable       Code = "region-table"
	CodeRegionTables      Code = "region-tables"
	CodeRegionTablesApart Code = "region-tables-differ"
	CodeRegionEntry       Code = "region-entry"
	CodeRegionMissing     Code = "region-missing"
	CodeRegionUnknown     Code = "region-unknown"
	CodeRegionFlags       Code = "region-flags"
	CodeRegionPlace       Code = "region-place"
	CodeMetadataTable     Code = "metadata-table"
	CodeMetadataEntry     Code = "metadata-entry"
	CodeMetadataItem      Code = "metadata-item"
	CodeMetadataMissing   Code = "metadata-missing"
	CodeMetadataUnknown   Code = "metadata-unknown"
	CodeMetadataFlags     Code = "metadata-flags"
	CodeReserved          Code = "reserved-bytes"
	CodeParentLocator     Code = "parent-locator"
	CodeParent            Code = "parent"
	CodeMergeUnfinished   Code = "merge-unfinished"
	CodeBATRegion         Code = "bat-region"
	CodeBATPlace          Code = "bat-place"
	CodeBATOverlap        Code = "bat-overlap"
	CodeBATState          Code = "bat-state"
	CodeBATReserved       Code = "bat-reserved"
	CodeBATOffset         Code = "bat-offset"
	CodeBATDraft          Code = "bat-draft-state"
	CodeBATCut            Code = "bat-cut"
	CodeBATBeyond         Code = "bat-beyond-disk"
	CodeBitmapUnused      Code = "bitmap-unused"
	CodeBitmapMissing     Code = "bitmap-missing"
	CodeBitmapState       Code = "bitmap-state"
	CodeBitmapStale       Code = "bitmap-stale"
	CodeLeakTail          Code = "leak-tail"
	CodeLeakGap           Code = "leak-gap"
	CodeTailUnused        Code = "tail-unused"
	CodeFixedSparse       Code = "fixed-not-allocated"
)

// Place says where in the file a [Finding] was made.
type Place struct {
	Structure string `json:"structure"` // the specification's name
	Offset    int64  `json:"offset"`    // bytes from the start of the file
	Index     int64  `json:"index"`     // of the entry, region or item; -1: none
}

func (p Place) String() string {
	if p.Index < 0 {
		return fmt.Sprintf("%s at offset %#x", p.Structure, p.Offset)
	}
	return fmt.Sprintf("%s %d at offset %#x", p.Structure, p.Index, p.Offset)
}

// Finding is one thing that Check found.
type Finding struct {
	Code     Code     `json:"code"`
	Severity Severity `json:"severity"`
	Place    Place    `json:"place"`
	Text     string   `json:"text"`             // what is the matter
	Advice   string   `json:"advice,omitempty"` // the way out, where Repair knows none
	Repair   string   `json:"repair,omitempty"` // what Repair does about it; "": nothing
}

func (f Finding) String() string {
	s := fmt.Sprintf("%s: %v: %s [%s]", f.Severity, f.Place, f.Text, f.Code)
	switch {
	case f.Repair != "":
		s += "; repair: " + f.Repair
	case f.Advice != "":
		s += "; " + f.Advice
	}
	return s
}

// Report is what [Check] found, or what [Repair] found and did.
type Report struct {
	File string `json:"file"`
	// Findings, in the order of the file's structures. Of each code at most
	// [CheckOptions.PerCode] are listed; Counts has them all.
	Findings []Finding          `json:"findings"`
	Counts   map[Severity]int64 `json:"counts"`
	Omitted  int64              `json:"omitted"` // findings that are not listed

	// Stopped says why the check could not look at everything; "": it did.
	Stopped string `json:"stopped,omitempty"`
	// Dirty: the log must be replayed; what follows it was checked with the
	// log applied in memory.
	Dirty  bool       `json:"dirty"`
	Replay ReplayInfo `json:"replay"`

	FileSize    int64 `json:"fileSize"`
	UsedEnd     int64 `json:"usedEnd"` // where the last structure ends
	VirtualSize int64 `json:"virtualSize"`
	BlockSize   int64 `json:"blockSize"`
	Blocks      int64 `json:"blocks"`
	Allocated   int64 `json:"allocated"` // payload blocks with space in the file
	LeakedBytes int64 `json:"leakedBytes"`
	Depth       int   `json:"depth,omitempty"` // images in the chain, this one included; 0: no parent, or not looked for

	// Repaired counts what Repair fixed, by finding. Always 0 after Check.
	Repaired int64 `json:"repaired"`
	// Done lists, a sentence each, what Repair did, in order.
	Done []string `json:"done,omitempty"`
	// After is the check that followed a repair, with what is left.
	After *Report `json:"after,omitempty"`

	perCode map[Code]int
}

// Clean reports whether the image needs nothing: no damage, no leak, no log to
// replay, and all of it has been looked at. Notes and warnings may be there.
func (r *Report) Clean() bool {
	return !r.Corrupt() && !r.Dirty && r.Stopped == "" && r.Counts[SeverityLeak] == 0 && r.Counts[SeverityUnsupported] == 0
}

// Corrupt reports whether the image is damaged.
func (r *Report) Corrupt() bool { return r.Counts[SeverityCorrupt] > 0 }

// doubtful reports whether there is damage that data may have been lost with.
func (r *Report) doubtful() bool {
	harmless := r.perCode[CodeIdentifier] + r.perCode[CodeLogPlace] // those are listed, and damage
	return r.Counts[SeverityCorrupt] > int64(harmless)
}

// Repairable counts the listed findings that Repair does something about.
func (r *Report) Repairable() int {
	n := 0
	for _, f := range r.Findings {
		if f.Repair != "" {
			n++
		}
	}
	return n
}

// Worst returns the listed finding of the greatest severity, the first of
// several; false if there is none.
func (r *Report) Worst() (Finding, bool) {
	if len(r.Findings) == 0 {
		return Finding{}, false
	}
	rank := []Severity{SeverityCorrupt, SeverityUnsupported, SeverityLeak, SeverityWarning, SeverityNote}
	return slices.MinFunc(r.Findings, func(a, b Finding) int {
		return cmp.Compare(slices.Index(rank, a.Severity), slices.Index(rank, b.Severity))
	}), true
}

// count is a number with its noun.
func count[T int | int64](n T, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func (r ReplayInfo) describe() string {
	return count(r.Entries, "entry", "entries") + " with " + count(r.Pages, "page", "pages")
}
