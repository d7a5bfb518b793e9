package vhdx

import (
	"errors"
	"fmt"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// checkHead judges the file identifier and both headers (MS-VHDX 2.2.1, 2.2.2)
// and chooses the current one.
func (c *checker) checkHead() error {
	id := alignedBytes(ondisk.PageSize)
	whole, err := c.read(id[:ondisk.IdentifierSize], ondisk.IdentifierOffset)
	if err != nil {
		return err
	}
	_, idErr := ondisk.DecodeFileIdentifier(id)
	slots, errs, err := readHeaders(c.f)
	if err != nil {
		return err
	}
	if errs[0] != nil && errs[1] != nil {
		if !whole || idErr != nil {
			return fmt.Errorf("%w: it has neither the signature of one nor a valid header", ErrNotVHDX)
		}
		c.corrupt(CodeHeadersInvalid, at("header", headerOffsets[0]), "neither header is valid: first: %s; second: %s", reason(errs[0]), reason(errs[1]))
		return c.stop("without a valid header nothing leads to the rest of the file")
	}
	if idErr != nil {
		c.add(Finding{
			Code: CodeIdentifier, Severity: SeverityCorrupt, Place: at("file type identifier", 0),
			Text:   reason(idErr) + ", but the headers are those of a VHDX file",
			Repair: "write the signature again",
		})
		c.plan.identifier = true
	}
	i, err := ondisk.CurrentHeader(slots[0], errs[0], slots[1], errs[1])
	if err != nil {
		c.corrupt(CodeHeadersAmbiguous, at("header", headerOffsets[0]), "%s: nothing says which is the newer one", reason(err))
		return c.stop("the headers contradict each other")
	}
	c.im.headers = headers{current: slots[i], slot: i}
	c.compareHeaders(slots, errs, i)
	return c.judgeHeader(slots[i], headerOffsets[i])
}

// readHeaders reads both slots. Only what the medium says is an error.
func readHeaders(f File) (slots [2]ondisk.Header, errs [2]error, err error) {
	buf := alignedBytes(ondisk.HeaderSize)
	for i, off := range headerOffsets {
		if errs[i] = readFull(f, buf, off); errs[i] == nil {
			slots[i], errs[i] = ondisk.DecodeHeader(buf)
		}
		if errs[i] != nil && !isFormat(errs[i]) {
			return slots, errs, errs[i]
		}
	}
	return slots, errs, nil
}

// compareHeaders judges the slot that is not current.
func (c *checker) compareHeaders(slots [2]ondisk.Header, errs [2]error, current int) {
	other := 1 - current
	p := Place{"header", headerOffsets[other], int64(other) + 1}
	if errs[other] != nil {
		c.add(Finding{
			Code: CodeHeaderInvalid, Severity: SeverityWarning, Place: p,
			Text:   fmt.Sprintf("%s; header %d is valid", reason(errs[other]), current+1),
			Repair: "write it anew from the other one",
		})
		c.plan.headers = true
		return
	}
	a, b := slots[0], slots[1]
	a.SequenceNumber, b.SequenceNumber = 0, 0
	if a != b {
		c.note(CodeHeadersDiffer, p, "the headers differ in more than their sequence numbers; header %d counts", current+1)
	}
}

// judgeHeader judges the current header.
func (c *checker) judgeHeader(h ondisk.Header, off int64) error {
	p := at("header", off)
	if h.Version != ondisk.FormatVersion {
		c.add(Finding{
			Code: CodeVersion, Severity: SeverityUnsupported, Place: p,
			Text: fmt.Sprintf("format version %d, only %d is known", h.Version, ondisk.FormatVersion),
		})
		return c.stop("format version %d is unknown", h.Version)
	}
	err := h.Validate()
	if err == nil {
		if h.LogLength == 0 {
			c.add(Finding{
				Code: CodeLogNone, Severity: SeverityNote, Place: p,
				Text: "the image has no log, so it can be read and not be written", Advice: "copy it into a new image to write to it",
			})
		}
		return nil
	}
	if !h.LogGUID.IsZero() || h.SequenceNumber > ondisk.MaxHeaderSequence {
		c.corrupt(CodeHeaderField, within(p, err), "%s", reason(err))
		return c.stop("the header cannot be relied on")
	}
	// The log is empty: nothing is lost with it.
	c.add(Finding{
		Code: CodeLogPlace, Severity: SeverityCorrupt, Place: within(p, err),
		Text: reason(err) + "; the log is empty", Repair: "give the log a new place",
	})
	c.plan.moveLog = true
	return nil
}

// checkLog finds the active sequence of a dirty log, and applies it in memory.
func (c *checker) checkLog() error {
	h := c.im.headers.current
	if h.LogGUID.IsZero() {
		return nil
	}
	c.r.Dirty = true
	p := at("log", int64(h.LogOffset))
	if int64(h.LogOffset)+int64(h.LogLength) > c.r.FileSize {
		c.corrupt(CodeFileTruncated, p, "the file of %#x bytes ends inside the log, which holds changes", c.r.FileSize)
		return c.stop("the log cannot be read")
	}
	l, s, err := c.im.activeLog()
	if err == nil {
		err = c.im.overlayOf(l, s)
	}
	c.r.Replay = c.im.replayed
	if err != nil {
		return c.lostLog(p, err)
	}
	o, ok := c.im.f.(*overlayFile)
	if !ok {
		return errors.New("the log was not applied")
	}
	c.f, c.r.FileSize = o, o.size
	c.add(Finding{
		Code: CodeLogDirty, Severity: SeverityWarning, Place: p,
		Text:   "the log must be replayed: " + c.r.Replay.describe(),
		Repair: "replay it",
	})
	c.plan.replay = true
	c.checkGap(l, s)
	return nil
}

// checkGap looks for valid entries that follow the head of the active sequence
// with at least one missing between: no replay reaches them.
func (c *checker) checkGap(l *logReader, s sequence) {
	last := s.head.SequenceNumber
	first := ondisk.LogEntryHeader{}
	var place uint32
	for pos, h := range l.found {
		if h.SequenceNumber > last && (first.SequenceNumber == 0 || h.SequenceNumber < first.SequenceNumber) {
			first, place = h, pos
		}
	}
	if first.SequenceNumber > 0 {
		c.add(Finding{
			Code: CodeLogGap, Severity: SeverityNote, Place: at("log entry", l.offset+int64(place)),
			Text:   fmt.Sprintf("its number is %d, and nothing valid lies between it and entry %d, the last that a replay reaches", first.SequenceNumber, last),
			Advice: "a power cut leaves such, and nothing that was flushed is missing; without one the log has been damaged, and what it held from there on is lost",
		})
	}
}

// lostLog tells why a log cannot be replayed.
func (c *checker) lostLog(p Place, err error) error {
	broken, isCorrupt := errors.AsType[*CorruptError](err)
	switch {
	case isCorrupt:
		code := CodeLogLost
		if broken.Structure == "log entry" && c.im.replayed.Entries == 0 {
			code = CodeFileTruncated
		}
		c.corrupt(code, Place{broken.Structure, broken.Offset, none}, "%s", broken.Reason)
	case errors.Is(err, ErrUnsupported):
		c.add(Finding{Code: CodeLogLost, Severity: SeverityUnsupported, Place: p, Text: err.Error()})
	default:
		return err
	}
	return c.stop("without its log replayed, nothing else in the file can be relied on")
}
