package devtest

import (
	"errors"
	"io"
	"sync"
	"syscall"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
)

// MemImage is an image in memory, sparse, without a descriptor: every request
// goes through its methods. It can be told to fail, to wait, and to remember.
type MemImage struct {
	sector   int
	readOnly bool

	mu      sync.Mutex // guards what follows
	size    int64
	chunks  map[int64][]byte
	flushed int // flushes done
	hook    func(Op) error
	log     []Op
	record  bool
}

// Op is one call of an image's method.
type Op struct {
	Kind string // "read", "write", "zero", "discard", "flush"
	Off  int64
	N    int64
}

const chunk = 64 << 10

var _ blockdev.Image = (*MemImage)(nil)

// NewMemImage makes an image of size zero bytes.
func NewMemImage(size int64, sector int) *MemImage {
	return &MemImage{size: size, sector: sector, chunks: map[int64][]byte{}}
}

// Hook calls f before each operation, outside any lock; an error is the
// operation's outcome. nil: none.
func (m *MemImage) Hook(f func(Op) error) {
	m.mu.Lock()
	m.hook = f
	m.mu.Unlock()
}

// Record starts to remember the operations that succeed, in order.
func (m *MemImage) Record() {
	m.mu.Lock()
	m.record, m.log = true, nil
	m.mu.Unlock()
}

// Recorded gives what was remembered.
func (m *MemImage) Recorded() []Op {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]Op(nil), m.log...)
}

// SetReadOnly makes it a read-only image, before it is attached.
func (m *MemImage) SetReadOnly() { m.readOnly = true }

// Grow makes it larger.
func (m *MemImage) Grow(size int64) error {
	m.mu.Lock()
	m.size = size
	m.mu.Unlock()
	return nil
}

func (m *MemImage) enter(op Op) error {
	m.mu.Lock()
	hook := m.hook
	m.mu.Unlock()
	if hook == nil {
		return nil
	}
	return hook(op)
}

// remember is called with mu held.
func (m *MemImage) remember(op Op) {
	if m.record {
		m.log = append(m.log, op)
	}
}

// ReadAt implements [io.ReaderAt].
func (m *MemImage) ReadAt(p []byte, off int64) (int, error) {
	if err := m.enter(Op{"read", off, int64(len(p))}); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.remember(Op{"read", off, int64(len(p))})
	n := int(max(0, min(int64(len(p)), m.size-off)))
	for at := 0; at < n; {
		c, in := (off+int64(at))/chunk, (off+int64(at))%chunk
		end := min(n, at+int(chunk-in))
		if b := m.chunks[c]; b != nil {
			copy(p[at:end], b[in:])
		} else {
			clear(p[at:end])
		}
		at = end
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt implements [io.WriterAt].
func (m *MemImage) WriteAt(p []byte, off int64) (int, error) {
	op := Op{"write", off, int64(len(p))}
	if err := m.enter(op); err != nil {
		return 0, err
	}
	return len(p), m.change(op, func(b []byte, at int64) { copy(b, p[at:]) })
}

// WriteZeroes implements blockdev.Image.
func (m *MemImage) WriteZeroes(off, n int64) error {
	op := Op{"zero", off, n}
	if err := m.enter(op); err != nil {
		return err
	}
	return m.change(op, func(b []byte, _ int64) { clear(b) })
}

// Discard implements blockdev.Image.
func (m *MemImage) Discard(off, n int64) error {
	op := Op{"discard", off, n}
	if err := m.enter(op); err != nil {
		return err
	}
	return m.change(op, func(b []byte, _ int64) { clear(b) })
}

// change calls f for each stretch of memory that op covers.
func (m *MemImage) change(op Op, f func(b []byte, at int64)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.readOnly {
		return syscall.EROFS
	}
	if op.Off < 0 || op.N > m.size-op.Off {
		return errors.New("beyond the end")
	}
	for at := int64(0); at < op.N; {
		c, in := (op.Off+at)/chunk, (op.Off+at)%chunk
		end := min(op.N, at+chunk-in)
		if m.chunks[c] == nil && op.Kind == "write" {
			m.chunks[c] = make([]byte, chunk)
		}
		if b := m.chunks[c]; b != nil {
			f(b[in:in+end-at], at)
		}
		at = end
	}
	m.remember(op)
	return nil
}

// Flush implements blockdev.Image.
func (m *MemImage) Flush() error {
	if err := m.enter(Op{Kind: "flush"}); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flushed++
	m.remember(Op{Kind: "flush"})
	return nil
}

// Flushed is how many flushes have been done.
func (m *MemImage) Flushed() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.flushed
}

// Size implements blockdev.Image.
func (m *MemImage) Size() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.size
}

// LogicalSectorSize implements blockdev.Image.
func (m *MemImage) LogicalSectorSize() int { return m.sector }

// PhysicalSectorSize implements blockdev.Image.
func (m *MemImage) PhysicalSectorSize() int { return 4096 }

// ReadOnly implements blockdev.Image.
func (m *MemImage) ReadOnly() bool { return m.readOnly }
