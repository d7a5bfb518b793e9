package vhdx_test

import (
	"errors"
	"fmt"
	"io"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

const headersEnd = 0x30000 // identifier and headers; beyond it lies what a FileWriteGuid identifies

// judge opens an image that a cut left and proves that it is what it may be.
func (h *harness) judge(image *vhdxtest.File, s *session, at place) error {
	hs, err := vhdxtest.Headers(image)
	if err != nil {
		return err
	}
	seen, err := h.readOnly(image, s.model)
	if err != nil {
		return fmt.Errorf("opened read-only: %w", err)
	}
	if err := s.checkGUIDs(image, hs[0], seen); err != nil {
		return err
	}
	// What the cut left is on the medium: from here on there is no choice.
	next, err := newSession(image, s.model.After(seen), seen)
	if err != nil {
		return err
	}
	file := image.Clone()
	deeper := len(at) < h.effort.depth
	if deeper && (len(h.only) > len(at) || at.chance(h.seed, "nested")%uint64(h.effort.nested) == 0) {
		file.OnStep(h.hook(next, at, h.effort.deeper))
	}
	return h.writable(file, next, at, deeper)
}

// readOnly shows the image with its log applied in memory.
func (h *harness) readOnly(image *vhdxtest.File, m *vhdxtest.Model) (*vhdxtest.Observed, error) {
	file := image.Clone()
	o := h.opts
	o.ReadOnly = true
	im, err := vhdx.Open(file, o)
	if err != nil {
		return nil, err
	}
	seen, err := observe(im, m)
	if err := errors.Join(err, im.Close()); err != nil {
		return nil, err
	}
	if file.Step() > 0 {
		return nil, fmt.Errorf("a read-only open changed the file %d times", file.Step())
	}
	return seen, nil
}

// observe reads what was ever written, and what the model says about it.
func observe(im *vhdx.Image, m *vhdxtest.Model) (*vhdxtest.Observed, error) {
	size := im.Size()
	if err := m.CheckSize(size); err != nil {
		return nil, err
	}
	seen := vhdxtest.NewObserved(size)
	buf := make([]byte, 1<<20)
	for _, e := range m.Touched(int64(len(buf))) {
		n := min(e.N, size-e.Off)
		if n <= 0 {
			continue
		}
		if _, err := im.ReadAt(buf[:n], e.Off); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if err := m.CheckCut(buf[:n], e.Off, seen); err != nil {
			return nil, err
		}
	}
	return seen, nil
}

// checkGUIDs: as long as a GUID is what it was when the session began, so is
// what it identifies (I-GUID-1, I-GUID-2).
func (s *session) checkGUIDs(image *vhdxtest.File, now vhdxtest.Header, seen *vhdxtest.Observed) error {
	if now.DataWriteGUID == s.headers.DataWriteGUID {
		if diff := s.observed.Difference(seen); diff != "" {
			return fmt.Errorf("the disk changed and DataWriteGuid did not: %s", diff)
		}
	}
	if now.FileWriteGUID != s.headers.FileWriteGUID {
		return nil
	}
	if offset := s.start.Difference(image, headersEnd); offset >= 0 {
		return fmt.Errorf("the file changed at %#x and FileWriteGuid did not", offset)
	}
	was, err := s.start.Size()
	if is, err2 := image.Size(); err != nil || err2 != nil || was != is {
		return fmt.Errorf("the file's size changed from %#x to %#x and FileWriteGuid did not (%w)", was, is, errors.Join(err, err2))
	}
	return nil
}

// writable opens the image, which replays it, compares it with what a
// read-only open saw, writes on now and then, and closes it.
func (h *harness) writable(file *vhdxtest.File, s *session, at place, deeper bool) error {
	im, err := vhdx.Open(file, h.opts)
	if err != nil {
		return fmt.Errorf("opened writable: %w", err)
	}
	if err := h.use(im, file, s, at, deeper); err != nil {
		return errors.Join(err, im.Close())
	}
	if err := im.Close(); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	return s.checkClosed(file, h.err() == nil)
}

func (h *harness) use(im *vhdx.Image, file *vhdxtest.File, s *session, at place, deeper bool) error {
	seen, err := observe(im, s.model)
	if err != nil {
		return fmt.Errorf("opened writable: %w", err)
	}
	if diff := s.observed.Difference(seen); diff != "" {
		return fmt.Errorf("a writable open shows something else than a read-only one: %s", diff)
	}
	if err := s.checkReplayed(file); err != nil {
		return err
	}
	goOn := at.chance(h.seed, "go on") % uint64(h.effort.goOn)
	if len(h.only) > len(at) {
		goOn = 0
	}
	switch {
	case goOn == 0 && deeper:
		file.OnStep(h.hook(s, at, h.effort.deeper))
	case goOn > 2:
		return nil
	}
	w := &run{h: h, file: file, im: im, session: s, at: at, kind: goOnWorkload}
	w.seed(at.chance(h.seed, "operations"))
	return w.operations(h.effort.ops)
}

// checkReplayed: a replay changes FileWriteGuid and nothing else that a header
// identifies; without one the file is as it was.
func (s *session) checkReplayed(file *vhdxtest.File) error {
	hs, err := vhdxtest.Headers(file)
	if err != nil {
		return err
	}
	if hs[0].DataWriteGUID != s.headers.DataWriteGUID {
		return errors.New("the open changed DataWriteGuid")
	}
	if !hs[0].Clean() {
		return errors.New("the open left LogGuid set")
	}
	if !s.headers.Clean() && hs[0].FileWriteGUID == s.headers.FileWriteGUID {
		return errors.New("the replay left FileWriteGuid as it was")
	}
	if s.headers.Clean() && file.Step() > 0 {
		return fmt.Errorf("the open of a clean image changed it %d times", file.Step())
	}
	return nil
}

// checkClosed: a closed image is durable, has a clean log, equal headers, no
// overlap and no unused tail, and its blocks hold no byte that is not theirs.
func (s *session) checkClosed(file *vhdxtest.File, judge bool) error {
	if !judge {
		return nil
	}
	if n := file.Snapshot().Undecided(); n > 0 {
		return fmt.Errorf("closed with %d operations that are not durable", n)
	}
	file = file.Clone()
	if file.Hash() == s.start.Hash() {
		return nil // nothing was written: it is what the last session left
	}
	l, err := vhdxtest.ReadLayout(file)
	if err != nil {
		return fmt.Errorf("closed: %w", err)
	}
	if l.Header.FileWriteGUID == s.headers.FileWriteGUID {
		return errors.New("closed: the file changed and FileWriteGuid did not")
	}
	if l.VirtualSize != s.model.Size() {
		return fmt.Errorf("closed: virtual size is %#x, not %#x", l.VirtualSize, s.model.Size())
	}
	if end := l.End(); l.Header.DataWriteGUID != s.headers.DataWriteGUID && end != l.FileSize {
		return fmt.Errorf("closed: the last structure ends at %#x and the file at %#x", end, l.FileSize)
	}
	for block, place := range l.Blocks {
		err := file.NonZero(place, place+l.BlockSize, func(off int64, data []byte) error {
			return s.model.CheckLive(data, block*l.BlockSize+off-place)
		})
		if err != nil {
			return fmt.Errorf("closed: payload block %d at %#x: %w", block, place, err)
		}
	}
	return nil
}
