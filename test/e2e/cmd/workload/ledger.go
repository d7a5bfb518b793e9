package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
)

// recordSize is that of a ledger's record, which holds its number.
const recordSize = 4096

// ledger is a database's promise: a record is acknowledged when it is on the
// disk. It appends until the pod ends, over and over in its space.
func (w *worker) ledger() error {
	f, err := os.OpenFile(w.path, os.O_RDWR|os.O_CREATE|syscall.O_DSYNC, 0o600)
	if err != nil {
		return err
	}
	records := w.blocks * blockSize / recordSize
	b := make([]byte, recordSize)
	for n := int64(1); n < records; n++ {
		fillRecord(b, n)
		if err := w.timed(func() error { _, err := f.WriteAt(b, n*recordSize); return err }); err != nil {
			return err
		}
		fillRecord(b, n) // the head says up to where the ledger goes
		if err := w.timed(func() error { _, err := f.WriteAt(b, 0); return err }); err != nil {
			return err
		}
		w.update(func(s *Status) { s.Writes, s.Verified, s.Ready = n, n, true })
	}
	return errors.New("the ledger is full")
}

func fillRecord(b []byte, n int64) {
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], uint64(n)) //nolint:gosec // counts from 1
	}
}

// audit reads a ledger: every record up to its end has to be there.
func (w *worker) audit() error {
	f, err := os.Open(w.path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	b := make([]byte, recordSize)
	if _, err := f.ReadAt(b, 0); err != nil {
		return err
	}
	last := int64(binary.LittleEndian.Uint64(b)) //nolint:gosec // checked below
	for n := int64(1); n <= last; n++ {
		if _, err := f.ReadAt(b, n*recordSize); err != nil {
			return fmt.Errorf("record %d of %d: %w", n, last, err)
		}
		for i := 0; i < len(b); i += 8 {
			if got := binary.LittleEndian.Uint64(b[i:]); got != uint64(n) { //nolint:gosec // as above
				return fmt.Errorf("record %d of %d holds %d", n, last, got)
			}
		}
	}
	w.update(func(s *Status) { s.Writes, s.Ready = last, true })
	return nil
}
