package vhdx

// barrier names one sync or one ordering rule that the durability model rests
// on. The crash test omits each in turn, and must then find damage: a barrier
// whose absence nobody notices is not needed or not tested.
type barrier uint8

const (
	// The new FileWriteGuid is durable before anything but a header changes.
	syncFileWriteGUID barrier = iota
	// Truncated and punched space, and the first log entry, are durable before
	// a header names the log.
	syncFirstEntry
	// The header with LogGuid and DataWriteGuid is durable before data or a
	// second log entry is written.
	syncLogGUID
	// The file's new size is durable before its space is handed out.
	syncGrowth
	// Data and log entry are durable before a flush is answered.
	syncCommit
	// Applied pages are durable before an entry's Tail passes them.
	syncApply
	// The entry with the advanced Tail is durable before log space is reused.
	syncTail
	// Replayed pages and the file's size are durable before LogGuid is cleared.
	syncReplay
	// The header with LogGuid zero is durable before a replayed log's space is
	// overwritten or the file shrinks.
	syncReplayClear
	// At close, applied pages are durable before LogGuid is cleared.
	syncCloseApply
	// At close, LogGuid zero is durable before the file shrinks.
	syncCloseClear
	// The shortened file and the second header are durable before Close returns.
	syncClosed
	// A new BAT region's content is durable before a region table names it.
	syncNewBAT
	// In a differencing image, data is durable before the log says that it is
	// there and not in the parent.
	syncData
	// A page is applied only after its log entry is durable.
	orderLogThenApply
	// What is applied is the copy that was logged, not the live page.
	orderApplyCopy
	// The first log entry is durable before, not after, LogGuid is published.
	orderEntryThenLogGUID
	// Space is handed out only if it is proven zero.
	orderProvenZero
	// Space of an abandoned write is proven zero again before it is reused.
	orderTaint
	// Space is given to another owner only after what took it from the old one
	// is durable.
	orderRetireThenReuse
	// Requests that may still use space leave it before it is punched.
	orderLeaveThenPunch
	// Space that was freed reads zero before it is handed out.
	orderPunchThenReuse
	// It does so durably.
	orderPunchSynced
	// The place of metadata that moved is used again only when no replay writes
	// to it any more.
	orderOutlived
	// The file in use is shortened only after an entry that says so is durable.
	orderLogThenShorten
	// What a smaller disk loses is gone durably before the size says so.
	orderCutThenSize
	// Entries that hide the parent behind the end of the disk go only when the
	// smaller size is durable.
	orderSizeThenForget
	// What a larger disk could show of its parent is hidden durably before the
	// size says so.
	orderHideThenSize
	// A block that was copied to another place is there durably before a log
	// entry says so.
	syncMoved
	// Payload is written before its mapping is published.
	orderDataThenMapping
	// A block's bits are logged no later than the entry that makes them count.
	orderBitsThenTable
	// So before a table that moves, and does not go through the log.
	orderBitsThenMove
	// A block's old bits are cleared before they count again.
	orderClearStale
	// A head is clean and durable before its child takes its place.
	orderFreezeThenRecord
	// The child accepts the GUID of a merge before its parent has it.
	orderAcceptThenMerge
	// And the child's own before the parent takes that over.
	orderAcceptThenFinish
	// A collapse marks how far it has got when that is durable.
	orderFlushThenMark
	powerBarriers

	// What follows is about the death of the process alone; without a journal
	// nothing notices.

	// A mapping is in the journal before the request is answered.
	orderRecordThenAnswer barrier = iota - 1
	// So is the loss of one.
	orderUnmapThenAnswer
	// What a predecessor's records took from a block stays the block's until
	// the successor has committed them.
	orderInheritedStay
	// Records are dropped after the log entry that holds them is durable.
	orderCommitThenDrop
	// The journal knows the child before it takes the head's place.
	orderAnnounceChild
	// The journal knows the new FileWriteGuid before the file carries it.
	orderAnnounce

	// Those of Repair.

	// Copies of blocks, or the log's new space, and the first log entry are
	// durable before a header names the log.
	syncRepairSpace
	barrierCount
)

// repairBarriers is the first barrier of Repair's own.
const repairBarriers = syncRepairSpace

var barrierNames = [barrierCount]string{
	syncFileWriteGUID:     "sync FileWriteGuid before any other change",
	syncFirstEntry:        "sync first log entry before LogGuid",
	syncLogGUID:           "sync LogGuid and DataWriteGuid before data",
	syncGrowth:            "sync file growth before use",
	syncCommit:            "sync data and log entry before answering a flush",
	syncApply:             "sync applied pages before Tail passes them",
	syncTail:              "sync advanced Tail before reusing log space",
	syncReplay:            "sync replayed pages before clearing LogGuid",
	syncReplayClear:       "sync cleared LogGuid before reusing the log",
	syncCloseApply:        "sync applied pages before clearing LogGuid at close",
	syncCloseClear:        "sync cleared LogGuid before shrinking the file",
	syncClosed:            "sync the shortened file before Close returns",
	syncNewBAT:            "sync new BAT region before naming it",
	syncData:              "sync data before logging its bits",
	orderBitsThenTable:    "log bits no later than the table",
	orderBitsThenMove:     "log bits before the table that moves",
	orderClearStale:       "clear stale bits before they count",
	orderFreezeThenRecord: "freeze the head before its child takes its place",
	orderAnnounceChild:    "announce the child to the journal",
	orderAcceptThenMerge:  "accept the GUID of a merge before the parent has it",
	orderAcceptThenFinish: "accept the child's GUID before the parent takes it",
	orderFlushThenMark:    "mark the progress of a collapse after its flush",
	orderLogThenApply:     "apply only what is durable in the log",
	orderApplyCopy:        "apply the logged copy, not the live page",
	orderEntryThenLogGUID: "write the first log entry before LogGuid",
	orderProvenZero:       "hand out only proven-zero space",
	orderTaint:            "prove abandoned space zero before reuse",
	orderRetireThenReuse:  "reuse freed space only after its freeing is durable",
	orderLeaveThenPunch:   "let requests leave freed space before it is punched",
	orderPunchThenReuse:   "punch freed space before reuse",
	orderPunchSynced:      "hand out punched space only after a sync",
	orderLogThenShorten:   "log the smaller size before shortening the file",
	orderCutThenSize:      "cut what lies beyond the end before the size",
	orderSizeThenForget:   "forget what hides the parent after the size",
	orderHideThenSize:     "hide the parent before the size",
	syncMoved:             "sync a moved block before logging its place",
	orderOutlived:         "reuse the old BAT's place only when no log entry names it",
	orderUnmapThenAnswer:  "record an unmapping before answering",
	orderInheritedStay:    "keep what inherited records free until the commit",
	orderRecordThenAnswer: "record a mapping before answering",
	orderCommitThenDrop:   "drop records after the commit",
	orderAnnounce:         "announce FileWriteGuid to the journal",
	orderDataThenMapping:  "write payload before publishing its mapping",
	syncRepairSpace:       "sync repaired copies before logging their places",
}

func (b barrier) String() string { return barrierNames[b] }

// barriers is a set of barrier.
type barriers uint64

func (s barriers) has(b barrier) bool { return s&(1<<b) != 0 }
