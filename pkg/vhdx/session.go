package vhdx

import (
	"errors"
	"fmt"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/deathpoint"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// begin starts the session of writes at the first of them. Order:
//
//	FileWriteGuid -> sync -> unreferenced space truncated and punched,
//	first log entry -> sync -> LogGuid and DataWriteGuid -> sync -> the other header
//
// From then on a header names the log, and the log holds a valid entry (I-LOG-1).
func (im *Image) begin() error {
	if im.begun.Load() || im.opts.ReadOnly {
		return im.usable(true)
	}
	im.committing.Lock()
	defer im.committing.Unlock()
	return im.beginLocked(true)
}

// beginLocked begins the session, or makes one that has changed the layout
// alone one that may change data (I-GUID-2). Caller holds committing.
func (im *Image) beginLocked(data bool) error {
	if im.begun.Load() || im.logging && !data || im.frozen.Load() {
		return nil
	}
	if err := im.usable(true); err != nil {
		return err
	}
	if im.headers.current.LogLength == 0 {
		return fmt.Errorf("%s: it has no log, so it cannot be written safely: %w", im.name, ErrUnsupported)
	}
	start := im.renewDataWriteGUID
	if !im.logging {
		if err := im.reserveMetadata(); err != nil {
			return err
		}
		start = func() error { return im.startSession(data) }
	}
	switch err := start(); {
	case errors.Is(err, errNoRoom) || err != nil && im.Poisoned() != nil:
		return err
	case err != nil:
		return im.poisonWith(err) // half-way: the headers in memory may be ahead of the file
	}
	im.logging = true
	if data {
		im.begun.Store(true)
		im.writable.Store(im.Poisoned() == nil)
	}
	return nil
}

// reserveMetadata makes the space of headers, log, metadata and BAT real, so
// that none of their writes can fail for want of it (I-SYNC-3).
func (im *Image) reserveMetadata() error {
	h := im.headers.current
	b := im.bat.Load()
	metadata := []extent{
		{0, ondisk.HeaderSectionSize},
		{int64(h.LogOffset), int64(h.LogLength)},
		{int64(im.metadata.region.Offset), int64(im.metadata.region.Length)},
		{b.offset, b.pages() * ondisk.PageSize},
	}
	for chunk := range b.bitmaps {
		if e := b.at(b.geometry.BitmapIndex(int64(chunk))); e.State() == ondisk.BitmapPresent {
			metadata = append(metadata, extent{e.Offset(), ondisk.BitmapBlockSize})
		}
	}
	for _, e := range metadata {
		if err := im.reserve(e); err != nil {
			return err
		}
	}
	return nil
}

// errNoRoom: the file was refused another size, and is as it was. The next write
// begins the session anew.
var errNoRoom = errors.New("no room to begin writing")

// startSession leaves DataWriteGuid alone if no data will change.
func (im *Image) startSession(data bool) error {
	if err := im.renewFileWriteGUID(); err != nil {
		return err
	}
	if err := im.scrub(); isFull(err) {
		return fmt.Errorf("%w: %w", errNoRoom, err)
	} else if err != nil {
		return err
	}
	deathpoint.Reach(deathpoint.SpaceScrubbed)
	h := im.headers.current
	im.log = logWriter{
		offset: int64(h.LogOffset), length: h.LogLength,
		guid: ondisk.NewGUID(), logged: map[int64][]byte{},
	}
	publish := func() error {
		if err := im.writeHeader(func(h *ondisk.Header) {
			h.LogGUID, h.LogVersion = im.log.guid, 0
			if data {
				h.DataWriteGUID = im.newDataGUID()
			}
		}); err != nil {
			return err
		}
		deathpoint.Reach(deathpoint.LogPublished)
		return im.syncHeader(syncLogGUID)
	}
	firstEntry := func() error {
		if err := im.appendEntry(nil); err != nil {
			return err
		}
		return im.syncLog(syncFirstEntry)
	}
	if im.opts.omit.has(orderEntryThenLogGUID) {
		publish, firstEntry = firstEntry, publish
	}
	if err := firstEntry(); err != nil {
		return err
	}
	if err := publish(); err != nil {
		return err
	}
	return im.copyHeader()
}

// newDataGUID is random, but while another image is merged into this one.
func (im *Image) newDataGUID() ondisk.GUID {
	if !im.mergeGUID.IsZero() {
		return im.mergeGUID
	}
	return ondisk.NewGUID()
}

// renewDataWriteGUID makes a session that left data alone one that changes it.
func (im *Image) renewDataWriteGUID() error {
	if err := im.syncHeader(syncLogGUID); err != nil {
		return err
	}
	if err := im.writeHeader(func(h *ondisk.Header) { h.DataWriteGUID = im.newDataGUID() }); err != nil {
		return err
	}
	if err := im.syncHeader(syncLogGUID); err != nil {
		return err
	}
	return im.copyHeader()
}

// scrub leaves only proven-zero space outside the structures of the file: a
// block that was written and lost before a power cut must not show through the
// next owner of its space. The sync of the first log entry makes it durable.
func (im *Image) scrub() error {
	s := &im.space
	s.mu.Lock()
	defer s.mu.Unlock()
	if im.opts.omit.has(orderProvenZero) {
		for _, e := range im.unreferenced {
			s.release(e)
		}
		s.end = roundUp(max(s.next, im.fileEnd), ondisk.MiB)
		return im.f.Truncate(s.end)
	}
	end := s.next
	if im.metadata.params.LeaveBlocksAllocated {
		end = max(end, roundUp(im.fileEnd, ondisk.MiB)) // it keeps its size
	}
	if im.fileEnd != end {
		if err := im.f.Truncate(end); err != nil {
			return err
		}
	}
	unreferenced := im.unreferenced
	im.unreferenced = nil
	if end > s.next {
		// What QEMU left unmapped in it is used as it stands.
		unreferenced = append(unreferenced, extent{s.next, end - s.next})
	}
	s.next, s.end = end, end
	for _, e := range unreferenced {
		if im.makeZero(e) == nil { // otherwise not proven zero: never handed out
			s.release(e)
		}
	}
	return nil
}

// Close ends the session: everything is committed and put in its place, the
// log is empty, both headers are equal, and the file has no unused tail. Order:
//
//	log -> sync -> apply -> sync -> LogGuid zero -> sync -> truncate, the other header -> sync
//
// The file is closed in any case. After a failure the log is still there and
// the next open replays it.
func (im *Image) Close() error {
	im.rotation.Lock()
	defer im.rotation.Unlock()
	return im.head().closeSelf()
}

// closeSelf is Close of this very image, whatever has taken its place.
func (im *Image) closeSelf() error {
	if im.closed.Swap(true) {
		return fmt.Errorf("%s: %w", im.name, ErrClosed)
	}
	im.writable.Store(false)
	im.pins.wait()
	im.committing.Lock()
	defer im.committing.Unlock()
	im.background.Wait() // nobody is left to start another growth
	err := im.Poisoned()
	if im.frozen.Load() {
		err = nil // a rotation has ended its session
	} else if err == nil && im.logging {
		err = im.endSession()
	} else if err == nil && im.headers.unsynced {
		err = im.sync(syncClosed)
	}
	return errors.Join(err, im.f.Close(), im.releaseChain())
}

// endSession leaves the file clean. Caller holds committing.
func (im *Image) endSession() error {
	if err := im.settleFile(); err != nil || im.opts.Journal == nil {
		return err
	}
	return im.opts.Journal.Reset()
}

func (im *Image) settleFile() error {
	if err := im.commitLocked(); err != nil {
		return err
	}
	im.background.Wait() // for holes where space was given up
	if err := im.apply(); err != nil {
		return err
	}
	if err := im.syncLog(syncCloseApply); err != nil {
		return err
	}
	deathpoint.Reach(deathpoint.CloseApplied)
	if err := im.clearLogGUID(syncCloseClear); err != nil {
		return err
	}
	deathpoint.Reach(deathpoint.CloseCleared)
	end := im.usedEnd()
	end = max(end, im.fixedEnd)
	if err := im.f.Truncate(end); err != nil {
		return err
	}
	if err := im.sync(syncClosed); err != nil {
		return err
	}
	im.headers.unsynced = false
	return nil
}

// usedEnd is where the last structure of the file ends.
func (im *Image) usedEnd() int64 {
	h := im.headers.current
	end := int64(h.LogOffset) + int64(h.LogLength)
	for _, r := range im.regions.table.Regions {
		end = max(end, int64(r.Offset)+int64(r.Length))
	}
	b := im.bat.Load()
	for i := range b.entries {
		if e := b.at(int64(i)); e.Offset() > 0 {
			size := im.blockSize
			if b.geometry.IsBitmap(int64(i)) {
				size = ondisk.BitmapBlockSize
			}
			end = max(end, e.Offset()+size)
		}
	}
	return end
}
