package vhdxtest

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
)

// ErrDied is what every operation answers from the step the file dies at on.
var ErrDied = errors.New("the file has died")

// maxSize bounds a File: a table of pointers grows with its size.
const maxSize = 1 << 40

// Kind of an operation on a [File].
type Kind uint8

// The kinds. All but Read change the medium and count as steps.
const (
	Read Kind = iota
	Write
	Sync
	Truncate
	Punch
	Zero
	Allocate
	kinds
)

var kindNames = [kinds]string{"read", "write", "sync", "truncate", "punch", "zero", "allocate"}

func (k Kind) String() string { return kindNames[k] }

// state of an operation on the medium.
type state uint8

const (
	pending state = iota // not covered by a sync yet
	limbo                // covered by a failed sync: nobody will ever know
	durable              // on the medium, but something before it is not
)

// op is an operation that the base does not hold yet.
type op struct {
	kind     Kind
	off, n   int64
	data     []byte // Write
	size     int64  // Truncate: the new size
	state    state
	returned bool // to its caller, so a sync that begins now covers it
}

// resizes reports whether o may change the size.
func (o *op) resizes() bool { return o.kind == Write || o.kind == Allocate || o.kind == Truncate }

// File is a medium in memory. Its methods satisfy File, HolePuncher,
// ZeroRanger and Allocator of package vhdx.
type File struct {
	name string

	mu     sync.RWMutex
	now    *pages // what reads see
	base   *pages // what is durable and needs no order
	ops    []*op  // since base, in the order issued
	closed bool
	step   int // operations that change the medium, so far
	dieAt  int // 0: never
	counts [kinds]atomic.Int64
	faults []Fault
	onStep func(*Snapshot)
	frozen *pages // clone of base for snapshots, nil after a change of base
}

// NewFile returns an empty file. Names are for messages.
func NewFile(name string) *File {
	return &File{name: name, now: newPages(), base: newPages()}
}

// fileOf returns a file that holds p, all of it durable.
func fileOf(name string, p *pages) *File {
	return &File{name: name, now: p.clone(), base: p}
}

// Clone returns a file with the bytes that reads of f see, all of them
// durable, open, at step 0 and without faults (I-TEST-4).
func (f *File) Clone() *File {
	f.mu.Lock()
	defer f.mu.Unlock()
	return fileOf(f.name, f.now.clone())
}

// Name is what messages call the file.
func (f *File) Name() string { return f.name }

// Size is that which reads see.
func (f *File) Size() (int64, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.dead() {
		return 0, ErrDied
	}
	return f.now.size, nil
}

// ReadAt is io.ReaderAt (I-TEST-3).
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if err := f.failRead(off, int64(len(p))); err != nil {
		return 0, fmt.Errorf("read %s at %#x: %w", f.name, off, err)
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.closed {
		return 0, fmt.Errorf("read %s at %#x: %w", f.name, off, errClosed)
	}
	if off < 0 {
		return 0, fmt.Errorf("read %s at %d: %w", f.name, off, syscall.EINVAL)
	}
	n := min(int64(len(p)), max(0, f.now.size-off))
	f.now.readAt(p[:n], off)
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// NextData returns the next offset in [off, end) that may not read zero, or
// end. It is no step, and no fault strikes it.
func (f *File) NextData(off, end int64) (int64, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.dead() {
		return 0, ErrDied
	}
	return f.now.next(off, end), nil
}

// WriteAt is io.WriterAt.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > maxSize-int64(len(p)) {
		return 0, fmt.Errorf("write %s at %#x: %w", f.name, off, syscall.EFBIG)
	}
	o := &op{kind: Write, off: off, n: int64(len(p)), data: slices.Clone(p)}
	return f.do(o)
}

// Truncate sets the size.
func (f *File) Truncate(size int64) error {
	if size < 0 || size > maxSize {
		return fmt.Errorf("truncate %s to %#x: %w", f.name, size, syscall.EFBIG)
	}
	_, err := f.do(&op{kind: Truncate, size: size})
	return err
}

// PunchHole makes what lies inside the file read zero.
func (f *File) PunchHole(off, length int64) error { return f.clear(Punch, off, length) }

// ZeroRange makes what lies inside the file read zero.
func (f *File) ZeroRange(off, length int64) error { return f.clear(Zero, off, length) }

// Allocate grows the file to hold the range.
func (f *File) Allocate(off, length int64) error { return f.clear(Allocate, off, length) }

func (f *File) clear(k Kind, off, length int64) error {
	if off < 0 || length <= 0 || off > maxSize-length {
		return fmt.Errorf("%v %s at %#x, %#x bytes: %w", k, f.name, off, length, syscall.EINVAL)
	}
	_, err := f.do(&op{kind: k, off: off, n: length})
	return err
}

// do carries out an operation, or the part of it that a fault lets through.
func (f *File) do(o *op) (int, error) {
	n, err := f.begin(o)
	runtime.Gosched() // let a Sync of another goroutine meet it in flight
	f.mu.Lock()
	o.returned = true
	f.mu.Unlock()
	if err != nil {
		return n, fmt.Errorf("%v %s at %#x: %w", o.kind, f.name, o.off, err)
	}
	return n, nil
}

func (f *File) begin(o *op) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.count(o.kind); err != nil {
		return 0, err
	}
	fault := f.fault(o.kind, o.off, o.n)
	if fault != nil {
		if fault.Short <= 0 {
			return 0, fault.Err
		}
		o.n = min(o.n, fault.Short)
		if o.kind == Write {
			o.data = o.data[:o.n]
		}
		f.append(o)
		return int(o.n), fault.Err
	}
	f.append(o)
	return int(o.n), nil
}

// append makes o visible and calls the hook.
func (f *File) append(o *op) {
	o.apply(f.now)
	f.ops = append(f.ops, o)
	f.stepped()
}

func (f *File) stepped() {
	if f.onStep != nil {
		f.onStep(f.snapshot())
	}
}

// apply carries all of o out on p.
func (o *op) apply(p *pages) {
	switch o.kind {
	case Write:
		p.writeAt(o.data, o.off)
	case Punch, Zero:
		p.zero(o.off, o.n)
	}
	if size := o.resize(p.size); size < p.size {
		p.truncate(size)
	} else {
		p.size = size
	}
}

// resize says what becomes of a size.
func (o *op) resize(size int64) int64 {
	switch o.kind {
	case Truncate:
		return o.size
	case Write, Allocate:
		if o.n > 0 {
			return max(size, o.off+o.n)
		}
	}
	return size
}

// Sync makes durable what had returned when it began (I-TEST-1).
func (f *File) Sync() error {
	covered, err := f.beginSync()
	if err != nil {
		return fmt.Errorf("sync %s: %w", f.name, err)
	}
	runtime.Gosched()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, o := range covered {
		o.state = durable
	}
	f.fold()
	f.stepped()
	return nil
}

// beginSync returns what the sync will make durable.
func (f *File) beginSync() ([]*op, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.count(Sync); err != nil {
		return nil, err
	}
	var covered []*op
	for _, o := range f.ops {
		if o.state == pending && o.returned {
			covered = append(covered, o)
		}
	}
	if fault := f.fault(Sync, 0, 0); fault != nil {
		for _, o := range covered {
			o.state = limbo // I-TEST-2
		}
		f.stepped()
		return nil, fault.Err
	}
	return covered, nil
}

// fold moves the durable operations that nothing undecided precedes into base.
func (f *File) fold() {
	done := 0
	for done < len(f.ops) && f.ops[done].state == durable {
		f.ops[done].apply(f.base)
		done++
	}
	if done > 0 {
		f.ops = slices.Delete(f.ops, 0, done)
		f.frozen = nil
	}
}

// Close ends the use of f; its bytes stay readable through Clone and Snapshot.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return fmt.Errorf("close %s: %w", f.name, errClosed)
	}
	f.closed = true
	return nil
}

// Reopen makes a closed file usable again: another open of the same path, in
// the same boot. What is pending stays so.
func (f *File) Reopen() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = false
}

// Hash is the same for two files with the same size and bytes (I-TEST-5).
func (f *File) Hash() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now.hash()
}

// NonZero calls fn with each page of 4 KiB in [from, to) that is no hole, as
// reads see it.
func (f *File) NonZero(from, to int64, fn func(off int64, data []byte) error) error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.now.each(from, min(to, f.now.size), fn)
}

// Difference returns the offset of the first page of 4 KiB at or above from in
// which two files differ, or -1. It does not compare their sizes.
func (f *File) Difference(o *File, from int64) int64 {
	a, b := f.Clone(), o.Clone()
	return a.now.difference(b.now, from)
}
