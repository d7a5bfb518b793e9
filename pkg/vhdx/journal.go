package vhdx

// Journal is the volatile journal: it outlives the process, not the power.
//
// A request is answered before its metadata reaches the log on disk. If only
// the process dies, the guest has dropped its copy and will read the data
// again, so whatever makes the data readable must be in the Journal first.
// Order per request: payload I/O returns, Record returns, the page in memory
// changes, the request is answered.
//
// A nil Journal means that the death of the process counts as a power cut:
// what was not flushed reads old or new.
type Journal interface {
	// Record keeps r. [ErrJournalFull] makes the image commit and try again.
	// Calls come one at a time and in the order of r.Seq.
	Record(r JournalRecord) error
	// Dropped says that all records up to and including seq are in the
	// durable log and need not be kept.
	Dropped(seq uint64)
}

// JournalRecord is one change that the log on disk does not hold yet.
type JournalRecord struct {
	Seq  uint64
	Kind JournalKind
	// Entry is the index of the changed BAT entry (JournalMapped).
	Entry uint64
	// Value is the new BAT entry (JournalMapped) or the new virtual size in
	// bytes (JournalSize).
	Value uint64
}

// JournalKind says what a [JournalRecord] changes.
type JournalKind uint8

// The kinds of record. Sector bitmap and head records join them with
// differencing images.
const (
	JournalMapped JournalKind = iota + 1
	JournalSize
	JournalPoisoned
)
