package fuseloop

import "github.com/csi-vhdx/csi-driver-vhdx/internal/uring"

const (
	// smallIO is the most data a request may carry in its own buffer. A larger
	// one keeps the big buffer it was read into, or is answered from.
	smallIO   = 16 << 10
	smallSize = dataAt + smallIO
	// bigBuffers is how many of those there are. While all carry requests no
	// further one is read.
	bigBuffers = 32
)

// memory is the locked memory of one engine: 8 MiB of big buffers (32 MiB for
// the largest maxIO) and 20 KiB per request.
type memory struct {
	all   []byte
	big   [][]byte
	small [][]byte
	wake  []byte
	leak  bool // operations may still be under way in it
}

func newMemory(depth int, maxIO int64) (memory, error) {
	bigSize := dataAt + max(int(maxIO), smallIO) // a read of /dev/fuse takes at least 8 KiB
	all, err := uring.Map(bigBuffers*bigSize + depth*smallSize + page)
	if err != nil {
		return memory{}, err
	}
	m := memory{all: all, big: make([][]byte, bigBuffers), small: make([][]byte, depth)}
	rest := all
	cut := func(n int) (b []byte) {
		b, rest = rest[:n:n], rest[n:]
		return b
	}
	for i := range m.big {
		m.big[i] = cut(bigSize)
	}
	for i := range m.small {
		m.small[i] = cut(smallSize)
	}
	m.wake = cut(page)
	return m, nil
}

func (m *memory) close() {
	if m.all != nil && !m.leak {
		_ = uring.Unmap(m.all)
		m.all = nil
	}
}
