// Package vhdx opens, creates and changes VHDX images (MS-VHDX 8.0): fixed,
// dynamic and differencing, with 512 and 4096 byte logical sectors, crash-safe through the
// format's own log. It knows nothing of Kubernetes or of block devices.
//
// # Vocabulary
//
// The virtual disk is cut into payload blocks; the BAT (block allocation table) says where in
// the file each lies. Headers, region table, metadata and BAT are the
// metadata; all but the headers change through the log. A session runs from
// the first write after an open to Close. To commit is to log the changed
// pages; to apply is to write the logged copies to their places.
//
// A differencing image is a layer: what it does not hold is its parent's. The
// layers below an image are its chain, the one that is written is the head. A
// block is partially present if its sector bitmap says which sectors the layer
// holds.
//
// # The path of a write
//
//	block has space:  pwrite, answer                            no lock, no metadata
//	block has none:   claim proven-zero space, pwrite,
//	                  journal, mapping in memory, answer         nothing logged yet
//	Flush:            copy dirty BAT pages -> one log entry
//	                  -> one sync for payload and entry, answer  shared by all who flush
//	later:            apply -> (sync of a later flush)
//	                  -> an entry with a later Tail -> (sync) -> log space is free
//	Discard:          journal, mapping gone in memory, answer      whole blocks
//	later:            (a flush) -> those inside have left -> punch
//	                  -> (sync of a later flush) -> space is free
//
// In a differencing image a flush that has new blocks or bits to log syncs
// twice:
//
//	copy dirty BAT and bitmap pages -> sync of the payload
//	-> bitmap pages, then BAT pages in descending order, in the log -> sync, answer
//
// A power cut at any point shows each unflushed sector old or new, and all
// flushed ones as flushed.
//
// # Invariants
//
// Log (log.go, replay.go, session.go):
//
//	I-LOG-1  LogGuid is published only after a valid first entry is durable.
//	I-LOG-2  LogGuid set and no valid sequence is corrupt, never clean. Replay
//	         starts at the entry that the head's Tail names.
//	I-LOG-3  A file shorter than the head's FlushedFileOffset is refused; after
//	         replay it is at least as long as LastFileOffset.
//	I-LOG-4  Log space is reused only after a newer entry whose Tail has passed it is durable.
//	I-LOG-5  What is logged is a copy of whole pages taken at commit; what is
//	         applied is that copy, after its entry is durable, never the live page.
//	I-LOG-6  Every entry carries FlushedFileOffset = LastFileOffset = a durable
//	         size that covers all it maps.
//
// Sync (commit.go, image.go):
//
//	I-SYNC-1 A completed Flush has made data and mapping of every write that had returned durable.
//	I-SYNC-2 Any failed sync and any failed metadata write poisons the image:
//	         nothing is written any more, the first cause is told, reads go on.
//	I-SYNC-3 Sessions reserve the space of all metadata before they write any, so
//	         that a full share fails requests, not images (room.go).
//
// Space (space.go, freelist.go, reclaim.go, discard.go, tail.go, resize.go,
// compact.go, layout.go):
//
//	I-SPACE-1 No two structures share a MiB. Open finds every overlap.
//	I-SPACE-2 Only proven-zero space is handed out: past the end of the file that
//	          this open extended, durably, or inside it after a durable punch.
//	I-SPACE-3 Space of an abandoned write is tainted and goes the second way.
//	I-SPACE-4 A place changes owner only after what took it from the old one is
//	          durable, whoever could still use it has left, and it is durably zero.
//	I-SPACE-5 The place of metadata that moved changes owner only when no entry
//	          of the log's present lap names it: a replay would write to it.
//	I-SPACE-6 The file in use is shortened only by free space, and only after an
//	          entry that says so, in a lap of its own, is durable.
//	I-SPACE-7 What a smaller disk loses is gone durably before its size says so,
//	          and does not come back when it grows again.
//	I-SPACE-8 A block that moves is in its new place durably before the log says
//	          so. Nobody writes meanwhile.
//
// Headers (headers.go):
//
//	I-HDR-1  A header slot is written only while the other one is durable.
//	I-HDR-2  After begin, replay and Close both slots say the same.
//	I-GUID-1 FileWriteGuid changes durably before anything but a header does.
//	I-GUID-2 DataWriteGuid changes durably before the first change that a reader
//	         of the disk could see, once per session; replay leaves it.
//
// Volatile journal (journal.go, ring.go), for the death of the process alone:
//
//	I-JRN-1  A new mapping, or the loss of one, is in the journal before the
//	         request is answered, and dropped only after the log entry that holds
//	         it is durable.
//	I-JRN-2  A successor takes over the records before it counts free space, and
//	         commits them before it serves anything. What they took from a block
//	         stays the block's until then.
//	I-JRN-3  FileWriteGuid tells the journal whether the file is still the one it
//	         belongs to: the journal learns a new value before the file does.
//	I-JRN-4  A poisoned image stays poisoned for the successor.
//
// Chains (chain.go, parents.go, registry.go, bitmap.go, partial.go, child.go,
// childsize.go):
//
//	I-CHAIN-1 A sector reads what the topmost layer that holds it says; a block
//	          in the states 1, 2 and 3 reads zero, never the parent; where a
//	          layer ends, so does all below it.
//	I-CHAIN-2 A parent's DataWriteGuid is the one in its child's locator, or the
//	          chain does not open.
//	I-CHAIN-3 Nothing below a head is ever written, and no open file of it
//	          lacks a lock that keeps writers away.
//	I-CHAIN-4 No locator leads out of where the opener allows parents; no cycle,
//	          and at most 256 images.
//	I-CHAIN-5 A bit is logged only after its sector is durable; no block is in
//	          the log as partially present before its bits and its chunk's
//	          bitmap are.
//	I-CHAIN-6 A block that becomes partially present begins with all its bits
//	          clear.
//	I-CHAIN-7 A head that a rotation leaves is clean, durably, before the
//	          caller's record names the child; the volatile journal knows both
//	          by then (rotate.go).
//	I-CHAIN-8 An image carries another's DataWriteGuid only when it shows the
//	          same, durably; a child accepts what its parent is about to carry
//	          before the parent does (collapse.go, merge.go, replace.go).
//	I-CHAIN-9 What a child's disk gains in size reads zero: its parent's data
//	          there is hidden, durably, before the size says so.
//
// Maps of frozen chains (outline*.go, changes.go):
//
//	I-DIFF-1 What a delta leaves out reads the same in both images; what a list
//	         of the allocated leaves out reads zero. Either may name more.
//	I-DIFF-2 A delta names no sector that no layer between the two holds, nor
//	         hides. Layers that were merged count as one.
//	I-DIFF-3 Memory is bounded by the number of images, whatever the disk's size.
//
// Check and repair (check*.go, repair*.go, plan.go), metadata items (items.go):
//
//	I-CHK-1  Check changes nothing, and agrees with Open: what opens has no
//	         damage, what is damaged does not open.
//	I-CHK-2  A check keeps a bit per MiB of the file and no entry of the BAT.
//	I-REP-1  A repair changes only what has one way out, and never what a disk
//	         that opened shows. What is not understood is not touched.
//	I-REP-2  A copy of a block is durable before the log says where it is.
//	I-REP-3  Unused space is freed only by a repair that began without damage.
//	I-REP-4  The log is not written while anything else may lie in its place.
//	I-ITEM-1 An item's content is in the log before the table's pages that name
//	         it, which come in one entry.
//
// Mappings (resolve.go, bat.go, pins.go):
//
//	I-MAP-1  Payload is in the file before its mapping is journalled, and that
//	         before the mapping is visible in memory.
//	I-MAP-2  A pinned or resolved range stays where it is until it is released:
//	         its block may go, its place does not change owner.
package vhdx
