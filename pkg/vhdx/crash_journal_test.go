package vhdx_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

// journal is a volatile journal that can be copied at any time, as the death
// of the process would leave it, and that insists on I-MAP-1.
type journal struct {
	mu   sync.Mutex
	mem  []byte
	ring *vhdx.Ring
	file *vhdxtest.File // nil: not looked at
	size int64          // of a block
	err  error          // of the first breach of I-MAP-1
}

// newJournal returns an empty journal, or the one that mem holds.
func newJournal(mem []byte) (*journal, error) {
	if mem == nil {
		mem = make([]byte, vhdx.MinRingSize)
	}
	ring, err := vhdx.NewRing(mem)
	return &journal{mem: mem, ring: ring}, err
}

// left returns the journal that a successor finds.
func (j *journal) left() (*journal, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return newJournal(slices.Clone(j.mem))
}

func (j *journal) Pending() (vhdx.JournalState, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.ring.Pending()
}

func (j *journal) Announce(present, next [16]byte) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.ring.Announce(present, next)
}

func (j *journal) Record(r vhdx.JournalRecord) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	bitmap := (int64(r.Entry)+1)%(512<<23/max(1, j.size)+1) == 0
	if place := int64(r.Value &^ 0xfffff); r.Kind == vhdx.JournalMapped && j.file != nil && place > 0 && !bitmap {
		j.checkPayload(place)
	}
	return j.ring.Record(r)
}

// checkPayload: a block that is being mapped has been written to (I-MAP-1).
// What the model writes is never zero.
func (j *journal) checkPayload(place int64) {
	written := false
	err := j.file.NonZero(place, place+j.size, func(int64, []byte) error {
		written = true
		return nil
	})
	if j.err == nil && err == nil && !written {
		err = fmt.Errorf("a mapping to %#x is journalled and nothing has been written there", place)
	}
	j.err = errors.Join(j.err, err)
}

func (j *journal) Dropped(seq uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.ring.Dropped(seq)
}

func (j *journal) Reset() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.ring.Reset()
}

func (j *journal) breach() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.err
}

// judgeKilled kills the process, not the machine, after the last operation and
// inside it: a successor with the journal shows every answered write.
func (h *harness) judgeKilled(snap *vhdxtest.Snapshot, s *session) error {
	for name, file := range map[string]*vhdxtest.File{
		"after":         snap.Killed(),
		"before":        snap.KilledInside(false),
		"in the middle": snap.KilledInside(true),
	} {
		left, err := s.journal.left()
		if err != nil {
			return err
		}
		if err := h.succeed(file, left, s); err != nil {
			return fmt.Errorf("killed %s the last operation: %w", name, err)
		}
	}
	return s.journal.breach()
}

// succeed opens the file of a killed process with its journal.
func (h *harness) succeed(file *vhdxtest.File, left *journal, s *session) error {
	o := h.opts
	o.Journal = left
	im, err := vhdx.Open(file, o)
	if err != nil {
		return fmt.Errorf("opened by a successor: %w", err)
	}
	err = readEach(im, s.model.Touched(readSize), s.checkLive)
	if err := errors.Join(err, s.model.CheckSize(im.Size()), im.Close()); err != nil {
		return fmt.Errorf("opened by a successor: %w", err)
	}
	after := *s
	after.killed = true
	return after.checkClosed(file)
}
