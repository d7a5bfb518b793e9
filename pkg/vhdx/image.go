package vhdx

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// Image is an open VHDX image. Reads, writes and flushes may run at once; those
// that touch allocated blocks only take no lock. Overlapping requests in
// flight together have no order.
type Image struct {
	f    File
	name string
	opts OpenOptions

	identifier ondisk.FileIdentifier
	metadata   metadata
	blockSize  int64
	blockShift uint
	growthStep int64
	fileEnd    int64 // size of the file when it was opened, log replayed
	replayed   ReplayInfo
	overlaid   bool // read-only with the log applied in memory

	unreferenced []extent // space below the last structure that Open found nobody to own; the first write's

	size     atomic.Int64
	bat      atomic.Pointer[bat]
	writable atomic.Bool // a session has begun and nothing has ended it: Pin may answer writes
	begun    atomic.Bool // a session has begun that may change data
	poison   atomic.Pointer[error]
	closed   atomic.Bool
	pins     *pins // shared with the image that a rotation puts in this one's place

	below     atomic.Pointer[chain] // what a differencing image lies on
	unaligned sync.Mutex            // held over the read and the write of a part of a sector

	// successor is an image that has taken this one's place; see Rotate.
	successor atomic.Pointer[Image]
	mergeGUID ondisk.GUID          // DataWriteGuid from the session's start on, unless zero
	lastGUID  ondisk.GUID          // DataWriteGuid from the session's end on, unless zero
	number    uint32               // counts the images that have been the head
	gate      atomic.Pointer[gate] // writes wait here while a rotation is under way
	pause     atomic.Int64         // how long the last rotation kept writes waiting, in ns
	frozen    atomic.Bool          // it has been rotated away and is never written again
	rotation  sync.Mutex           // one rotation, resize, compaction, replacement of the parent or Close at a time; before pins and committing

	space space

	// exclusive: the layout is being changed and nobody else may write.
	exclusive atomic.Bool

	// syncing is held over each sync and what follows from its failure. Order:
	// after committing, before space.mu.
	syncing sync.Mutex

	// committing guards what follows: everything that writes metadata. Order:
	// committing before space.mu.
	committing sync.Mutex
	headers    headers
	regions    regions
	log        logWriter
	logging    bool         // a session has begun
	fixedEnd   int64        // a fixed image is not cut shorter than this; 0: a dynamic one
	journalSeq uint64       // guarded by space.mu
	inherited  JournalState // what a predecessor that died left; set by Open

	flushWanted atomic.Uint64 // counts calls of Flush
	flushDone   uint64        // guarded by committing; the last call a commit has covered

	background sync.WaitGroup
}

// Size returns the virtual disk's size in bytes.
func (im *Image) Size() int64 { return im.head().size.Load() }

// LogicalSectorSize returns 512 or 4096.
func (im *Image) LogicalSectorSize() int { return im.metadata.logicalSectorSize }

// PhysicalSectorSize returns 512 or 4096.
func (im *Image) PhysicalSectorSize() int { return im.metadata.physicalSectorSize }

// ReadOnly reports whether the image was opened read-only.
func (im *Image) ReadOnly() bool { return im.opts.ReadOnly } // a rotation changes none of the three

// Poisoned returns the first failure that made the image refuse writes, or nil.
func (im *Image) Poisoned() error {
	im = im.head()
	if p := im.poison.Load(); p != nil {
		return *p
	}
	return nil
}

// poisonWith remembers the first failure and refuses every later write: after
// a failed sync or metadata write nobody knows what the medium holds
// (I-SYNC-2). It returns the failure as callers should see it.
func (im *Image) poisonWith(cause error) error {
	err := fmt.Errorf("%s: %w: %w; close it, mend the medium and open it again: the log replays what was flushed", im.name, ErrPoisoned, cause)
	if im.poison.CompareAndSwap(nil, &err) {
		im.writable.Store(false)
		im.space.mu.Lock()
		_ = im.record(JournalRecord{Kind: JournalPoisoned}) // the journal is full or gone: the cause is reported either way
		im.space.mu.Unlock()
	}
	return im.Poisoned()
}

// sync makes everything written so far durable. The test switch leaves out the
// named barrier. One at a time: the kernel reports a failure once, and whoever
// asks next would be told that all is well.
func (im *Image) sync(b barrier) error {
	if im.opts.omit.has(b) {
		return nil
	}
	im.syncing.Lock()
	defer im.syncing.Unlock()
	if err := im.Poisoned(); err != nil {
		return err
	}
	punched := im.space.takePunched()
	if err := im.f.Sync(); err != nil {
		return im.poisonWith(fmt.Errorf("%s: %w", b, err))
	}
	im.space.freePunched(punched)
	return nil
}

// writeMetadata writes one of the structures whose loss would lose more than
// the request at hand.
func (im *Image) writeMetadata(p []byte, off int64) error {
	if _, err := im.f.WriteAt(p, off); err != nil {
		return im.poisonWith(err)
	}
	return nil
}

// record numbers a change and gives it to the volatile journal. Caller holds
// space.mu.
func (im *Image) record(r JournalRecord) error {
	if im.opts.Journal == nil || im.opts.omit.has(orderRecordThenAnswer) {
		return nil
	}
	r.Seq = im.journalSeq + 1
	if err := im.opts.Journal.Record(r); err != nil {
		return err
	}
	im.journalSeq++
	return nil
}

func isJournalFull(err error) bool { return errors.Is(err, ErrJournalFull) }

var errHolesUnsupported = fmt.Errorf("punch hole: %w", errors.ErrUnsupported)

// usable answers why a request cannot be served: closed, and for writes
// read-only or poisoned.
func (im *Image) usable(write bool) error {
	switch {
	case im.closed.Load():
		return fmt.Errorf("%s: %w", im.name, ErrClosed)
	case write && im.opts.ReadOnly:
		return fmt.Errorf("%s: %w", im.name, ErrReadOnly)
	case write && im.exclusive.Load():
		return fmt.Errorf("%s: it is being compacted: %w", im.name, ErrInUse)
	case write:
		return im.Poisoned()
	}
	return nil
}

// checkRange refuses what reaches beyond the virtual disk.
func (im *Image) checkRange(off, n int64) error {
	if size := im.size.Load(); off < 0 || n < 0 || off > size || n > size-off {
		return fmt.Errorf("%s: %d bytes at %#x of a disk of %#x: %w", im.name, n, off, size, ErrOutOfRange)
	}
	return nil
}
