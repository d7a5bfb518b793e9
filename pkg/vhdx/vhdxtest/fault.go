package vhdxtest

import (
	"io/fs"
	"slices"
)

var errClosed = fs.ErrClosed

// Fault makes one operation fail.
type Fault struct {
	Kind Kind
	// N counts down: 1 is the next operation of this kind that Match accepts.
	N int
	// Match, if set, chooses the operations that count.
	Match func(off, n int64) bool
	// Err is the answer.
	Err error
	// Short is how many bytes of the operation are carried out all the same;
	// a truncation is carried out whole.
	Short int64
	// Stay makes every later operation fail as well.
	Stay bool
}

// Inject adds faults. Of several that fit, the first added answers.
func (f *File) Inject(faults ...Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = append(f.faults, faults...)
}

// ClearFaults removes what is left of the injected faults.
func (f *File) ClearFaults() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = nil
}

// FaultsLeft returns how many of the injected faults have not struck yet.
func (f *File) FaultsLeft() int {
	f.mu.RLock()
	defer f.mu.RUnlock()
	n := 0
	for i := range f.faults {
		if f.faults[i].N > 0 {
			n++
		}
	}
	return n
}

// fault returns the fault that strikes this operation. Under mu.
func (f *File) fault(k Kind, off, n int64) *Fault {
	for i := range f.faults {
		ft := &f.faults[i]
		if ft.Kind != k || ft.Match != nil && !ft.Match(off, n) {
			continue
		}
		if ft.N > 0 {
			ft.N--
		}
		if ft.N > 0 {
			continue
		}
		struck := *ft
		if !ft.Stay {
			f.faults = slices.Delete(f.faults, i, i+1)
		}
		return &struck
	}
	return nil
}

// failRead counts a read and returns the error of the fault that strikes it.
func (f *File) failRead(off, n int64) error {
	f.counts[Read].Add(1)
	f.mu.RLock()
	dead, safe := f.dead(), len(f.faults) == 0
	f.mu.RUnlock()
	if dead {
		return ErrDied
	}
	if safe {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if fault := f.fault(Read, off, n); fault != nil {
		return fault.Err
	}
	return nil
}

// count counts an operation that changes the medium. Under mu.
func (f *File) count(k Kind) error {
	if f.closed {
		return errClosed
	}
	f.counts[k].Add(1)
	f.step++
	if f.dead() {
		return ErrDied
	}
	return nil
}

// dead is asked under mu.
func (f *File) dead() bool { return f.dieAt > 0 && f.step >= f.dieAt }

// DieAt makes f die at a step: that operation and all later ones, reads too,
// answer [ErrDied]. Steps count from 1; 0 means never.
func (f *File) DieAt(step int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dieAt = step
}

// Count returns how many operations of a kind were asked for.
func (f *File) Count(k Kind) int {
	return int(f.counts[k].Load())
}

// Step returns how many operations that change the medium were asked for.
func (f *File) Step() int {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.step
}

// OnStep sets what is called after each operation that changed the medium,
// under the lock of the file: no other operation goes on meanwhile. Nil: none.
func (f *File) OnStep(hook func(*Snapshot)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onStep = hook
}
