package deathpoint

// Point is a place at which a worker may be made to die.
type Point uint8

// The points, in the order in which the life of a volume meets them.
const (
	none Point = iota

	// pkg/vhdx: a write to a new block.

	// Space has been claimed, nothing has been written.
	BlockClaimed
	// The payload is in the file, nobody knows where.
	PayloadWritten
	// The record is in the volatile journal, the page in memory is unchanged.
	MappingRecorded
	// The mapping is visible, the request is not answered.
	MappingPublished
	// The file has its new size, not durably.
	FileGrown
	// The journal knows that a block has lost its space, memory does not.
	UnmapRecorded
	// Space that was given up has been punched, not durably.
	SpacePunched

	// pkg/vhdx: a session and its commits.

	// The journal knows the new FileWriteGuid, the file does not.
	GUIDAnnounced
	// Unreferenced space has been punched, the log has no entry.
	SpaceScrubbed
	// A header names the log, not durably.
	LogPublished
	// The log entry has been written, not synced.
	EntryWritten
	// The log entry is durable, the records are still in the journal.
	EntrySynced
	// The records have been dropped, the flush is not answered.
	RecordsDropped
	// Some logged pages are in their place, others are not.
	Applying
	// All are, not durably.
	Applied
	// A lap of the log has ended, the next one has no entry.
	LapEnded

	// pkg/vhdx: a clean end.

	// Everything is in its place, LogGuid is still set.
	CloseApplied
	// LogGuid is zero, the journal has not been reset.
	CloseCleared

	// pkg/vhdx: a takeover.

	// The log on disk is about to be replayed.
	ReplayBegun
	// It has been, LogGuid is still set.
	ReplayApplied
	// The journal's records are in the table in memory.
	RecordsInherited
	// They are committed, nothing new has been served.
	TakeoverCommitted

	// pkg/blockdev/fuseloop: a device comes.

	AttachOpened     // /dev/fuse is open
	AttachServer     // the engine stands
	AttachNegotiated // INIT is answered, the device does not exist
	AttachDone       // it does, nobody keeps the connection
	AttachKept       // the keeper has it, nobody has been told

	// pkg/blockdev/fuseloop: a device is taken over.

	ResumeTaken  // the connection is this process's
	ResumeServer // the engine stands, nothing has been sent again
	ResumeResent // requests in flight will come again, nobody reads them
	ResumeDone   // the engine serves

	// pkg/blockdev/fuseloop: requests.

	RingDone    // the ring's own read or write of the image is done, not answered
	FlushBegun  // a flush is in flight
	FlushDone   // it is done, not answered
	ZeroDone    // a discard or a zeroing is done, not answered
	SlowQueued  // a request that the ring cannot do waits for its goroutine
	ReplyQueued // an answer is queued, not written

	// pkg/blockdev/fuseloop: a device goes.

	DetachBegun
	DetachRemoved // the device is gone, the server has not ended

	// internal/helper: a child has just been started.

	HelperAttach
	HelperDetach
	HelperResize
	HelperLoopAlive
	HelperStay
	HelperBind
	HelperUmount
	HelperStatfs
	HelperSyncfs
	HelperAlive
	HelperRead
	HelperFreeze
	HelperThaw
	HelperMkfsExt4
	HelperMkfsXFS
	HelperFsck
	HelperResize2fs
	HelperXFSGrow
	HelperMount

	// pkg/node: its steps.

	NodeEntry          // the journal entry is durable
	NodeOpened         // the image is open
	NodeGrown          // it has its recorded size
	NodeAttached       // the device is there, the entry does not name it
	NodeDeviceRecorded // it does
	NodeFormatting     // the record says formatting
	NodeMkfs           // mkfs is about to run
	NodeFormatted      // it has run
	NodeChecked        // the filesystem has been checked
	NodeMounted        // it is mounted
	NodeUsed           // the record says mounted
	NodeTargetRecorded // the entry names a target
	NodeTargetMade     // its directory is there
	NodeBound          // it is mounted there
	NodeUnmounted      // the staging path is not mounted any more
	NodeDetached       // the device is gone
	NodeClosed         // the image is closed
	NodeClaimed        // a successor has what the keeper held
	NodeReopened       // it has opened the image
	NodeResumed        // it serves the device
	NodeReleased       // an orderly end has left the device to a successor

	// End is how many there are, and one.
	End
)

var names = [End]string{
	BlockClaimed:      "write:claimed",
	PayloadWritten:    "write:payload",
	MappingRecorded:   "write:recorded",
	MappingPublished:  "write:published",
	FileGrown:         "write:grown",
	UnmapRecorded:     "discard:recorded",
	SpacePunched:      "discard:punched",
	GUIDAnnounced:     "session:announced",
	SpaceScrubbed:     "session:scrubbed",
	LogPublished:      "session:published",
	EntryWritten:      "commit:entry",
	EntrySynced:       "commit:synced",
	RecordsDropped:    "commit:dropped",
	Applying:          "apply:page",
	Applied:           "apply:written",
	LapEnded:          "apply:lap",
	CloseApplied:      "close:applied",
	CloseCleared:      "close:cleared",
	ReplayBegun:       "takeover:replay",
	ReplayApplied:     "takeover:replayed",
	RecordsInherited:  "takeover:inherited",
	TakeoverCommitted: "takeover:committed",
	AttachOpened:      "attach:opened",
	AttachServer:      "attach:server",
	AttachNegotiated:  "attach:negotiated",
	AttachDone:        "attach:done",
	AttachKept:        "attach:kept",
	ResumeTaken:       "resume:taken",
	ResumeServer:      "resume:server",
	ResumeResent:      "resume:resent",
	ResumeDone:        "resume:done",
	RingDone:          "request:ring",
	FlushBegun:        "request:flush",
	FlushDone:         "request:flushed",
	ZeroDone:          "request:zeroed",
	SlowQueued:        "request:slow",
	ReplyQueued:       "request:reply",
	DetachBegun:       "detach:begun",
	DetachRemoved:     "detach:removed",
	HelperAttach:      helperPrefix + "fuseloop-attach",
	HelperDetach:      helperPrefix + "fuseloop-detach",
	HelperResize:      helperPrefix + "fuseloop-resize",
	HelperLoopAlive:   helperPrefix + "fuseloop-alive",
	HelperStay:        helperPrefix + "fuseloop-stay",
	HelperBind:        helperPrefix + "node-bind",
	HelperUmount:      helperPrefix + "node-umount",
	HelperStatfs:      helperPrefix + "node-statfs",
	HelperSyncfs:      helperPrefix + "node-syncfs",
	HelperAlive:       helperPrefix + "node-alive",
	HelperRead:        helperPrefix + "node-read",
	HelperFreeze:      helperPrefix + "node-freeze",
	HelperThaw:        helperPrefix + "node-thaw",
	HelperMkfsExt4:    helperPrefix + "mkfs.ext4",
	HelperMkfsXFS:     helperPrefix + "mkfs.xfs",
	HelperFsck:        helperPrefix + "e2fsck",
	HelperResize2fs:   helperPrefix + "resize2fs",
	HelperXFSGrow:     helperPrefix + "xfs_growfs",
	HelperMount:       helperPrefix + "mount",

	NodeEntry:          nodePrefix + "entry",
	NodeOpened:         nodePrefix + "opened",
	NodeGrown:          nodePrefix + "grown",
	NodeAttached:       nodePrefix + "attached",
	NodeDeviceRecorded: nodePrefix + "device recorded",
	NodeFormatting:     nodePrefix + "formatting",
	NodeMkfs:           nodePrefix + "mkfs",
	NodeFormatted:      nodePrefix + "formatted",
	NodeChecked:        nodePrefix + "checked",
	NodeMounted:        nodePrefix + "mounted",
	NodeUsed:           nodePrefix + "used",
	NodeTargetRecorded: nodePrefix + "target recorded",
	NodeTargetMade:     nodePrefix + "target made",
	NodeBound:          nodePrefix + "bound",
	NodeUnmounted:      nodePrefix + "unmounted",
	NodeDetached:       nodePrefix + "detached",
	NodeClosed:         nodePrefix + "closed",
	NodeClaimed:        nodePrefix + "claimed",
	NodeReopened:       nodePrefix + "reopened",
	NodeResumed:        nodePrefix + "resumed",
	NodeReleased:       nodePrefix + "released",
}

// Before names that are not known to this package.
const (
	helperPrefix = "helper:"
	nodePrefix   = "node:"
)

func (p Point) String() string {
	if p < End {
		return names[p]
	}
	return "no point"
}

// All lists the points.
func All() []Point {
	all := make([]Point, 0, End-1)
	for p := none + 1; p < End; p++ {
		all = append(all, p)
	}
	return all
}

// Variable names, in the environment, the file that is the shared page.
const Variable = "VHDX_DEATHPOINTS"
