package vhdx

import (
	"strings"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// plan is what a check found that a repair can mend. Its lists are bounded;
// what does not fit is for the check after the repair.
type plan struct {
	identifier  bool
	replay      bool
	headers     bool // one slot is invalid
	moveLog     bool
	tables      bool   // one copy of the region table is invalid
	tablesApart bool   // both are valid and differ
	table       []byte // the copy that counts
	entries     []entryFix
	copies      []claimant
	bitmaps     []bitmapFix
	extend      int64 // the file's size must reach this
	unaligned   bool
	gaps        []extent
	tail        int64 // the file may end here; 0: it ends where it should
	more        bool  // than the lists hold
}

// entryFix replaces an entry of the BAT.
type entryFix struct {
	index int64
	entry ondisk.BATEntry
}

// bitmapFix clears the stale bits of one page of a sector bitmap.
type bitmapFix struct {
	chunk, off int64
	page       int
}

const maxPlan = 1 << 16

func (p *plan) replace(index int64, e ondisk.BATEntry) {
	if len(p.entries) == maxPlan {
		p.more = true
		return
	}
	p.entries = append(p.entries, entryFix{index, e})
}

func (p *plan) copyBlock(c claimant) {
	if len(p.copies) == maxPlan {
		p.more = true
		return
	}
	p.copies = append(p.copies, c)
}

func (p *plan) clearBits(f bitmapFix) {
	if len(p.bitmaps) == maxPlan {
		p.more = true
		return
	}
	p.bitmaps = append(p.bitmaps, f)
}

// giveUpBAT leaves a garbled table as it is: where some entries are nonsense,
// others may be so and look well.
func (p *plan) giveUpBAT(r *Report) {
	p.entries, p.copies, p.bitmaps, p.extend, p.more = nil, nil, nil, 0, false
	for i := range r.Findings {
		f := &r.Findings[i]
		if f.Place.Structure == "BAT entry" && f.Repair != "" && f.Code != CodeLogPlace || strings.HasPrefix(string(f.Code), "bitmap-") {
			f.Repair, f.Advice = "", "the table seems to have been overwritten: "+restore
		}
	}
}
