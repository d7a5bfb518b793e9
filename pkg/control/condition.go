package control

import "strings"

// Condition is one thing that can be wrong with a volume. Its reason is a word of
// the API: monitoring matches it, and it stays what it is.
type Condition struct {
	Status Status
	Reason string
}

// What can be wrong with a volume. docs/reference/health.md says of each what it
// means and what to do.
var (
	// Nothing of these is lost: it is a matter of what is in the way.
	PoolUnreachable  = Condition{StatusInaccessible, "PoolUnreachable"}
	PoolFull         = Condition{StatusInaccessible, "PoolFull"}
	NodeUnreachable  = Condition{StatusInaccessible, "NodeUnreachable"}
	WaitingForServer = Condition{StatusInaccessible, "WaitingForServer"}
	Quarantined      = Condition{StatusInaccessible, "Quarantined"}
	LeaseLost        = Condition{StatusInaccessible, "LeaseLost"}
	DeviceLost       = Condition{StatusInaccessible, "DeviceLost"}
	LeftBehind       = Condition{StatusInaccessible, "LeftBehind"}
	StageFailed      = Condition{StatusInaccessible, "StageFailed"}
	// A failed sync loses nothing that anybody was promised: what was flushed
	// before it is on the medium, and the flush itself was answered with an error.
	// So it is no data loss, which would have users restore an old backup over a
	// volume that only has to be staged anew.
	ImagePoisoned = Condition{StatusInaccessible, "ImagePoisoned"}
	// The image waits for a person.
	RecordDamaged      = Condition{StatusInaccessible, "RecordDamaged"}
	LogReplayFailed    = Condition{StatusInaccessible, "LogReplayFailed"}
	ParentMissing      = Condition{StatusInaccessible, "ParentMissing"}
	ParentRefused      = Condition{StatusInaccessible, "ParentRefused"}
	ImageUnsupported   = Condition{StatusInaccessible, "ImageUnsupported"}
	FilesystemUnusable = Condition{StatusInaccessible, "FilesystemUnusable"}
	// It can be read.
	FilesystemReadOnly = Condition{StatusDegraded, "FilesystemReadOnly"}
	// Something has been destroyed.
	ImageMissing    = Condition{StatusDataLoss, "ImageMissing"}
	ImageTruncated  = Condition{StatusDataLoss, "ImageTruncated"}
	HeaderCorrupt   = Condition{StatusDataLoss, "HeaderCorrupt"}
	MetadataCorrupt = Condition{StatusDataLoss, "MetadataCorrupt"}
	ParentMismatch  = Condition{StatusDataLoss, "ParentMismatch"}
)

// Conditions are all of them.
var Conditions = []Condition{
	PoolUnreachable, PoolFull, NodeUnreachable, WaitingForServer, Quarantined, LeaseLost, DeviceLost, LeftBehind,
	StageFailed, ImagePoisoned, RecordDamaged, LogReplayFailed, ParentMissing, ParentRefused, ImageUnsupported,
	FilesystemUnusable, FilesystemReadOnly, ImageMissing, ImageTruncated, HeaderCorrupt, MetadataCorrupt, ParentMismatch,
}

// maxMessage is below what a message between controller and node may have.
const maxMessage = 1024

// Because is the entry for the condition; err says why.
func (c Condition) Because(err error) Entry {
	text := ""
	if err != nil {
		text = err.Error()
	}
	return Entry{Status: c.Status, Reason: c.Reason, Message: strings.ToValidUTF8(text[:min(len(text), maxMessage)], "")}
}
