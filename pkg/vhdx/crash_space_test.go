package vhdx_test

// idle waits for what goes on behind the operations, so that the steps of a
// seed are the same each time. A late write holds it up for as long as it is late.
func (w *run) idle() {
	if w.late == nil {
		w.im.Idle()
	}
}

// trim discards one of the workload's blocks, whole.
func (w *run) trim() error {
	bs := w.session.blockSize
	off := w.kind.blocks[w.r.IntN(len(w.kind.blocks))] * bs
	if off >= w.im.Size() {
		return nil
	}
	return w.discardBlock(off)
}

func (w *run) discardBlock(off int64) error {
	n := min(w.session.blockSize, w.im.Size()-off)
	c := w.model().Zero(off, n)
	err := w.im.Discard(off, n)
	c.Done(err)
	return err
}

// lateWrite is a write that was under way when its block was discarded, and
// reaches the place only later: what a backend does that issues its own I/O.
type lateWrite struct {
	data []byte
	at   int64 // in the file
	pin  uint32
}

// straggle begins a late write, or ends the one there is.
func (w *run) straggle() error {
	if w.late != nil {
		late := w.late
		_, err := w.file.WriteAt(late.data, late.at)
		w.leave()
		return err
	}
	e := w.last
	at, pin, ok := w.im.Pin(true, e.Off, e.N)
	if !ok {
		return nil
	}
	w.late = &lateWrite{data: make([]byte, e.N), at: at, pin: pin}
	if _, err := w.file.ReadAt(w.late.data, at); err != nil {
		return err
	}
	return w.discardBlock(e.Off / w.session.blockSize * w.session.blockSize)
}

// leave lets a late write come to nothing.
func (w *run) leave() {
	if w.late != nil {
		w.im.Unpin(w.late.pin)
		w.late = nil
	}
}
