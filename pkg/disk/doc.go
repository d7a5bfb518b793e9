// Package disk copies and compares disks, whatever holds them: VHDX images and
// chains of them, raw files, block devices, pipes.
//
//	Source --NextData--> cutter --pieces--> workers --nonzero runs--> Target
//	                     one at a time      read, find zeros, write
//
// Memory is bounded by the workers, each of which has one buffer. What reads
// zero is known, in this order, from the block tables and holes of the source
// (never read), then by looking at what was read.
//
// Invariants:
//
//	I-CPY-1  Up to the offset that Options.Saved is told, the target holds what
//	         the source does, durably.
//	I-CPY-2  A name is given to a new image or file only when it is complete and
//	         durable; after an error or a cancelled context there is none.
//	I-CPY-3  A target that is not Blank holds zeros, after the copy, wherever the
//	         source does: nothing of what was there shows through.
package disk
