package vhdx_test

import (
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"sync"

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
	if err := checkCut(image.Clone()); err != nil {
		return err
	}
	touched := s.model.Touched(readSize)
	seen, sum, err := h.readOnly(image, s.model, touched)
	if err != nil {
		return fmt.Errorf("opened read-only: %w", err)
	}
	if err := s.checkGUIDs(image, hs[0], seen); err != nil {
		return err
	}
	// What the cut left is on the medium: from here on there is no choice.
	next := &session{start: image, headers: hs[0], observed: seen, sum: sum, before: s.model, touched: touched, geometry: s.geometry}
	steps, err := h.writable(image.Clone(), next.again(), at)
	if err != nil || len(at) >= h.effort.depth {
		return err
	}
	nested := at.chance(h.seed, "nested")%uint64(h.effort.nested) == 0
	if steps == 0 || !nested && len(h.only) <= len(at) {
		return nil
	}
	return h.reopenCut(image.Clone(), next.again(), at, steps)
}

// reopenCut opens an image and cuts the replay, at every step if there are few.
func (h *harness) reopenCut(file *vhdxtest.File, s *session, at place, steps int) error {
	s.live()
	hook, stride := h.hook(s, at, h.effort.deeper), 1+steps/h.effort.replayed
	file.OnStep(func(snap *vhdxtest.Snapshot) {
		if snap.Step()%stride == 0 || snap.Step() > steps-4 {
			hook(snap)
		}
	})
	im, err := vhdx.Open(file, h.opts)
	if err != nil {
		return fmt.Errorf("opened writable: %w", err)
	}
	return im.Close()
}

// readOnly shows the image with its log applied in memory.
func (h *harness) readOnly(image *vhdxtest.File, m *vhdxtest.Model, touched []vhdxtest.Extent) (*vhdxtest.Observed, uint64, error) {
	file := image.Clone()
	o := h.opts
	o.ReadOnly = true
	im, err := vhdx.Open(file, o)
	if err != nil {
		return nil, 0, err
	}
	seen, sum, err := observe(im, m, touched)
	if err := errors.Join(err, im.Close()); err != nil {
		return nil, 0, err
	}
	if file.Step() > 0 {
		return nil, 0, fmt.Errorf("a read-only open changed the file %d times", file.Step())
	}
	return seen, sum, nil
}

// observe reads what was ever written, and what the model says about it.
func observe(im *vhdx.Image, m *vhdxtest.Model, touched []vhdxtest.Extent) (*vhdxtest.Observed, uint64, error) {
	size := im.Size()
	if err := m.CheckSize(size); err != nil {
		return nil, 0, err
	}
	seen, c := vhdxtest.NewObserved(size), newContents()
	err := readEach(im, touched, func(p []byte, off int64) error {
		c.add(p, off)
		return m.CheckCut(p, off, seen)
	})
	return seen, c.sum.Sum64(), err
}

var sumSeed = maphash.MakeSeed()

const readSize = 64 * kib

var readBuffers = sync.Pool{New: func() any { return new([readSize]byte) }}

// readEach reads extents and shows each to do.
func readEach(im *vhdx.Image, extents []vhdxtest.Extent, do func(p []byte, off int64) error) error {
	size := im.Size()
	room := readBuffers.Get().(*[readSize]byte)
	defer readBuffers.Put(room)
	buf := room[:]
	for _, e := range extents {
		n := min(e.N, size-e.Off)
		if n <= 0 {
			continue
		}
		if _, err := im.ReadAt(buf[:n], e.Off); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if err := do(buf[:n], e.Off); err != nil {
			return err
		}
	}
	return nil
}

// contents is a hash of what is not zero, and of where that is.
type contents struct{ sum maphash.Hash }

func newContents() *contents {
	c := &contents{}
	c.sum.SetSeed(sumSeed)
	return c
}

// add takes part of a disk: the same parts each time, in the same order.
func (c *contents) add(p []byte, off int64) {
	for len(p) > 0 {
		n := min(len(p), 4*int(kib))
		if !bytes.Equal(p[:n], noBytes[:n]) {
			maphash.WriteComparable(&c.sum, off)
			c.sum.Write(p[:n])
		}
		p, off = p[n:], off+int64(n)
	}
}

func (c *contents) addEach(im *vhdx.Image, extents []vhdxtest.Extent) error {
	return readEach(im, extents, func(p []byte, off int64) error { c.add(p, off); return nil })
}

var noBytes [4 * kib]byte

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
// read-only open saw, writes on now and then, and closes it. It returns how
// many steps the open took.
func (h *harness) writable(file *vhdxtest.File, s *session, at place) (int, error) {
	im, err := vhdx.Open(file, h.opts)
	if err != nil {
		return 0, fmt.Errorf("opened writable: %w", err)
	}
	steps := file.Step()
	if err := h.use(im, file, s, at); err != nil {
		return 0, errors.Join(err, im.Close())
	}
	if err := im.Close(); err != nil {
		return 0, fmt.Errorf("close: %w", err)
	}
	if h.err() != nil {
		return 0, nil
	}
	return steps, s.checkClosed(file)
}

func (h *harness) use(im *vhdx.Image, file *vhdxtest.File, s *session, at place) error {
	c := newContents()
	if err := c.addEach(im, s.touched); err != nil {
		return fmt.Errorf("opened writable: %w", err)
	}
	if c.sum.Sum64() != s.sum || im.Size() != s.observed.Size {
		seen, _, err := observe(im, s.live(), s.touched)
		if err == nil {
			err = errors.New(s.observed.Difference(seen))
		}
		return fmt.Errorf("a writable open shows something else than a read-only one: %w", err)
	}
	if err := s.checkReplayed(file); err != nil {
		return err
	}
	goOn := at.chance(h.seed, "go on") % uint64(h.effort.goOn)
	if len(h.only) > len(at) {
		goOn = 0
	}
	if goOn > 2 {
		return nil
	}
	s.live()
	if goOn == 0 && len(at) < h.effort.depth {
		file.OnStep(h.hook(s, at, h.effort.deeper))
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
func (s *session) checkClosed(file *vhdxtest.File) error {
	if file.Step() == 0 {
		return nil // nothing was written: it is what the last session left
	}
	if n := file.Snapshot().Undecided(); n > 0 {
		return fmt.Errorf("closed with %d operations that are not durable", n)
	}
	file = file.Clone()
	if file.Hash() == s.start.Hash() {
		return nil // nothing has been written since it was reopened
	}
	l, err := vhdxtest.ReadLayout(file)
	if err != nil {
		return fmt.Errorf("closed: %w", err)
	}
	if l.Header.FileWriteGUID == s.headers.FileWriteGUID {
		return errors.New("closed: the file changed and FileWriteGuid did not")
	}
	if err := s.checkTail(l); err != nil {
		return err
	}
	allowed := []vhdx.Code{}
	if s.foreign {
		allowed = append(allowed, vhdx.CodeBATBeyond)
	}
	if err := checkClean(file, allowed...); err != nil {
		return err
	}
	m, check := s.before, func(p []byte, off int64) error { return s.before.CheckCut(p, off, nil) }
	if s.model != nil {
		m, check = s.model, s.checkLive
	}
	if err := m.CheckSize(l.VirtualSize); err != nil {
		return fmt.Errorf("closed: %w", err)
	}
	for block, place := range l.Blocks {
		if s.foreign && block*l.BlockSize >= l.VirtualSize {
			continue // nothing reads it
		}
		err := file.NonZero(place, place+l.BlockSize, func(off int64, data []byte) error {
			return check(data, block*l.BlockSize+off-place)
		})
		if err != nil {
			return fmt.Errorf("closed: payload block %d at %#x: %w", block, place, err)
		}
	}
	return checkPartial(file, l, check)
}

// checkPartial looks at the sectors that partially present blocks hold.
func checkPartial(file *vhdxtest.File, l *vhdxtest.Layout, check func([]byte, int64) error) error {
	for block, place := range l.Partial {
		err := file.NonZero(place, place+l.BlockSize, func(off int64, data []byte) error {
			for i := int64(0); i < int64(len(data)); i += l.SectorSize {
				at := block*l.BlockSize + off + i - place
				present, err := l.Present(file, at)
				if err == nil && present {
					err = check(data[i:i+l.SectorSize], at)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("closed: partial payload block %d at %#x: %w", block, place, err)
		}
	}
	return nil
}

// checkTail: a session that wrote leaves no unused tail, but a fixed image
// keeps what it had.
func (s *session) checkTail(l *vhdxtest.Layout) error {
	if s.killed || l.Header.DataWriteGUID == s.headers.DataWriteGUID {
		return nil
	}
	end := l.End()
	if l.Fixed && !s.shrunk {
		had, err := s.start.Size()
		if err != nil {
			return err
		}
		end = max(end, had)
	}
	if end != l.FileSize {
		return fmt.Errorf("closed: the last structure ends at %#x and the file at %#x", end, l.FileSize)
	}
	return nil
}
