package vhdx

import (
	"fmt"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/deathpoint"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// Flush makes every write that has returned survive a power cut (I-SYNC-1).
// Flushes that come together share one commit.
func (im *Image) Flush() error {
	im = im.head()
	if im.closed.Load() {
		return fmt.Errorf("%s: %w", im.name, ErrClosed)
	}
	if err := im.Poisoned(); err != nil {
		return err
	}
	if !im.begun.Load() {
		return nil // nothing has been written
	}
	ticket := im.flushWanted.Add(1)
	im.committing.Lock()
	defer im.committing.Unlock()
	if im.frozen.Load() {
		return nil // a rotation has made all of it durable
	}
	if im.flushDone >= ticket {
		return im.Poisoned() // a commit that began after this call has covered it
	}
	if im.closed.Load() {
		return fmt.Errorf("%s: %w", im.name, ErrClosed)
	}
	return im.commitLocked()
}

func (im *Image) commit() error {
	im.committing.Lock()
	defer im.committing.Unlock()
	return im.commitLocked()
}

// commitLocked is the group commit: the dirty pages are copied, logged and
// synced together with all payload written so far. One sync serves both: new
// blocks lie in proven-zero space, so a power cut shows each unflushed sector
// old or new, never foreign. A differencing image syncs its data first, see
// logDirtyLayer: what is not on the medium would read zero there, not old.
// Caller holds committing.
func (im *Image) commitLocked() error {
	if err := im.Poisoned(); err != nil {
		return err
	}
	covers := im.flushWanted.Load()
	im.space.mu.Lock()
	journalled := im.journalSeq
	im.space.mu.Unlock()
	if im.opts.Journal != nil && im.opts.omit.has(orderCommitThenDrop) {
		im.opts.Journal.Dropped(journalled)
	}
	unused := im.takeRetired()
	if err := im.logDirty(); err != nil {
		return err
	}
	deathpoint.Reach(deathpoint.EntryWritten)
	if err := im.syncLog(syncCommit); err != nil {
		return err
	}
	deathpoint.Reach(deathpoint.EntrySynced)
	im.flushDone = covers
	if im.opts.Journal != nil {
		im.opts.Journal.Dropped(journalled)
		deathpoint.Reach(deathpoint.RecordsDropped)
	}
	if l := &im.log; l.used() > l.length/2 {
		// Durable with the next flush's sync; the entry after that frees the space.
		if err := im.apply(); err != nil {
			return err
		}
	}
	if !im.closed.Load() { // Close shortens the file with the log empty
		if err := im.trimTail(tailSteps*im.growthStep, im.growthStep); err != nil {
			return err
		}
	}
	im.reclaim(append(unused, im.log.takeOutlived()...))
	return nil
}

// logDirty writes log entries for all dirty pages of the BAT.
func (im *Image) logDirty() error {
	if im.metadata.params.HasParent {
		return im.logDirtyLayer()
	}
	b := im.bat.Load()
	dirty := b.takeDirty(nil)
	for len(dirty) > 0 {
		n := min(len(dirty), im.log.maxPages())
		pages := make([]page, n)
		data := make([]byte, n*ondisk.PageSize)
		for i, number := range dirty[:n] {
			pages[i] = page{b.pageOffset(number), data[i*ondisk.PageSize:][:ondisk.PageSize]}
			b.encodePage(pages[i].data, number)
		}
		if err := im.logPages(pages); err != nil {
			return err
		}
		dirty = dirty[n:]
	}
	return nil
}

// logPages writes one entry, after making room for it where there is none.
func (im *Image) logPages(pages []page) error {
	length := ondisk.LogEntryLength(len(pages), len(pages))
	switch l := &im.log; {
	case l.endsLap(length):
		if err := im.newLap(length); err != nil {
			return err
		}
	case l.overwrites(l.head, length):
		// Of the last lap: this lap's first entry, whose Tail is itself, has to
		// be durable before it.
		if err := im.syncLog(syncTail); err != nil {
			return err
		}
	}
	return im.appendEntry(pages)
}
