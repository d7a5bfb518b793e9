package vhdx

import "time"

// OpenOptions says how to open an image. The zero value opens it writable and
// replays its log.
type OpenOptions struct {
	// ReadOnly writes nothing to the file: a dirty log is applied in memory.
	ReadOnly bool
	// RefuseDirty answers ErrLogReplayRequired instead of replaying a log.
	RefuseDirty bool
	// Journal outlives the process; see [Journal]. Nil: none.
	Journal Journal
	// GrowthStep is by how many bytes the file grows ahead of use, rounded up
	// to whole MiB and at least one block. 0: 64 MiB.
	GrowthStep int64

	// Parents opens what a differencing image refers to; see [ParentsIn]. Nil:
	// differencing images are refused.
	Parents ParentOpener
	// NoParents opens a differencing image without what is below it: reads of
	// what it does not hold itself fail. Only with ReadOnly.
	NoParents bool

	omit      barriers   // test switch: barriers that are left out
	noTimers  bool       // test switch: nothing happens but on a call
	maxCopied int        // test switch: another maxCopied
	noAhead   bool       // test switch: the file grows only when a request waits for it
	trail     []FileID   // of the images that this one is below of; nil: of none
	rotating  *parentRef // the parent, which is open already
}

// CreateOptions says what to create. Zero means: the default.
type CreateOptions struct {
	// Size of the virtual disk in bytes, more than 0 and at most 64 TiB;
	// rounded up to whole logical sectors.
	Size int64
	// Fixed allocates every block at once, space included.
	Fixed bool
	// BlockSize in bytes, 1 to 256 MiB, a power of two; rounded up where off.
	// 0: by size, as QEMU chooses (8 MiB up to 1 GiB, 16 MiB up to 100 GiB,
	// 32 MiB up to 32 TiB, 64 MiB above).
	BlockSize int64
	// LogSize in bytes, rounded up to whole MiB. 0: 1 MiB.
	LogSize int64
	// LogicalSectorSize and PhysicalSectorSize: 512 or 4096. 0: 512 and 4096.
	LogicalSectorSize  int
	PhysicalSectorSize int
	// Creator goes into the file identifier, at most 255 UTF-16 units. "":
	// this package's name.
	Creator string
	// Progress, if set, is told how many bytes of a fixed image have their
	// space. Its error ends the creation.
	Progress func(done, total int64) error
}

// Created says what Create made of the options.
type Created struct {
	// Options with every default filled in and every value rounded.
	Options CreateOptions
	// Adjusted tells, a sentence each, which given values were rounded and to what.
	Adjusted []string
}

// ResizeOptions says how to change the size of the virtual disk.
type ResizeOptions struct {
	// CutData lets a smaller disk lose the data beyond its end. Otherwise
	// that is refused with [ErrDataBeyondEnd].
	CutData bool
}

// CompactOptions says how to compact an image.
type CompactOptions struct {
	// KeepZeroes does not look for blocks that hold nothing but zeros: all
	// payload need not be read then.
	KeepZeroes bool
	// Progress, if set, is told how many bytes of payload have been dealt with.
	Progress func(done, total int64)
}

// Compacted says what Compact did.
type Compacted struct {
	Zeroes     int64 // blocks that held only zeros and have no space any more
	Moved      int64 // blocks that lie further down now
	SizeBefore int64 // of the file, in bytes
	SizeAfter  int64
}

// Info describes an open image.
type Info struct {
	File               string
	Creator            string
	VirtualSize        int64
	FileSize           int64
	BlockSize          int64
	LogicalSectorSize  int
	PhysicalSectorSize int
	Fixed              bool // LeaveBlocksAllocated
	HasParent          bool
	LogSize            int64
	DiskID             string // Page 83 data
	FileWriteGUID      string
	DataWriteGUID      string
	PayloadBlocks      int64 // of the virtual disk
	AllocatedBlocks    int64 // with space in the file
	// Replay of the log at open; Entries 0: the log was clean.
	Replay ReplayInfo
}

// ReplayInfo says what the replay of a log at open did.
type ReplayInfo struct {
	Entries int
	Pages   int   // data descriptors applied
	Zeroed  int64 // bytes of zero descriptors
	// Took is how long an open that wrote it to the file took for that.
	Took time.Duration `json:"-"`
}
