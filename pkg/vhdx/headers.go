package vhdx

import (
	"errors"
	"fmt"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/deathpoint"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// headers are the two header slots. The current one says what the file is; an
// update goes into the other, which becomes current (MS-VHDX 2.2.2.1).
type headers struct {
	current  ondisk.Header
	slot     int  // of current: 0 or 1
	unsynced bool // current may not be on the medium yet
	renewed  bool // FileWriteGUID is this open's own
}

var headerOffsets = [2]int64{ondisk.Header1Offset, ondisk.Header2Offset}

// loadHeaders reads both slots and chooses the current one.
func (im *Image) loadHeaders() error {
	var slots [2]ondisk.Header
	var errs [2]error
	buf := alignedBytes(ondisk.HeaderSize)
	for i, off := range headerOffsets {
		if err := readFull(im.f, buf, off); err != nil {
			return corruptRead(im.f, fmt.Sprintf("header %d", i+1), off, err)
		}
		slots[i], errs[i] = ondisk.DecodeHeader(buf)
	}
	i, err := ondisk.CurrentHeader(slots[0], errs[0], slots[1], errs[1])
	if err != nil {
		return corrupt(im.f, "header", headerOffsets[0], err)
	}
	if v := slots[i].Version; v != ondisk.FormatVersion {
		return fmt.Errorf("%s: format version %d: %w", im.name, v, ErrUnsupported)
	}
	if err := slots[i].Validate(); err != nil {
		return corrupt(im.f, "header", headerOffsets[i], err)
	}
	im.headers = headers{current: slots[i], slot: i}
	return nil
}

// writeHeader changes the header in the slot that is not current. The current
// one is durable first: should the write tear, it is what is left (I-HDR-1).
func (im *Image) writeHeader(change func(*ondisk.Header)) error {
	h := &im.headers
	if h.unsynced {
		return im.poisonWith(errors.New("a header would be written before the other one is durable"))
	}
	next := h.current
	next.SequenceNumber++
	change(&next)
	buf := alignedBytes(ondisk.HeaderSize)
	next.Encode(buf)
	if back, err := ondisk.DecodeHeader(buf); err != nil || back != next {
		return im.poisonWith(fmt.Errorf("header does not read back as it was encoded: %w", err))
	}
	slot := 1 - h.slot
	if err := im.writeMetadata(buf, headerOffsets[slot]); err != nil {
		return err
	}
	h.current, h.slot, h.unsynced = next, slot, true
	return nil
}

// copyHeader gives the other slot the same content, so that both end equal
// (I-HDR-2). It becomes durable with the next sync.
func (im *Image) copyHeader() error { return im.writeHeader(func(*ondisk.Header) {}) }

// renewFileWriteGUID marks the file as changed by this open, durably, before
// anything else in it changes (I-GUID-1).
func (im *Image) renewFileWriteGUID() error {
	if im.headers.renewed {
		return nil
	}
	guid := ondisk.NewGUID()
	if j := im.opts.Journal; j != nil && !im.opts.omit.has(orderAnnounce) {
		if err := j.Announce(im.headers.current.FileWriteGUID, guid); err != nil {
			return fmt.Errorf("%s: volatile journal: %w", im.name, err)
		}
		deathpoint.Reach(deathpoint.GUIDAnnounced)
	}
	if err := im.writeHeader(func(h *ondisk.Header) { h.FileWriteGUID = guid }); err != nil {
		return err
	}
	im.headers.renewed = true
	return im.syncHeader(syncFileWriteGUID)
}

// clearLogGUID says that the log is empty, first in one slot, durably.
func (im *Image) clearLogGUID(b barrier) error {
	if err := im.writeHeader(func(h *ondisk.Header) {
		h.LogGUID = ondisk.GUID{}
		if !im.lastGUID.IsZero() {
			h.DataWriteGUID = im.lastGUID
		}
	}); err != nil {
		return err
	}
	if err := im.syncHeader(b); err != nil {
		return err
	}
	return im.copyHeader()
}

func (im *Image) syncHeader(b barrier) error {
	if err := im.sync(b); err != nil {
		return err
	}
	im.headers.unsynced = false
	return nil
}
