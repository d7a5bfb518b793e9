package supervisor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// page is the memory that a supervisor shares with one worker.
//
//	0      8  magic "vhdxsupv"
//	8      4  version
//	16     8  beats: the worker counts up
//	24     8  how often it is to do so, ns
//	32     4  ready: the worker sets 1
//	64     .. 128 slots of what the worker works on
//	24640  .. 128 marks of whom to suspect, written before the worker starts;
//	          the supervisor may only clear their strikes later
//	49216  .. what became of the workers before, and what they have counted; see history.go
//
//	slot and mark: 0 state or strikes  4 length  8 id (128)
type page []byte

const (
	pageMagic   = "vhdxsupv"
	pageVersion = 2
	pageSize    = 64 << 10

	offBeats    = 16
	offInterval = 24
	offReady    = 32
	offSlots    = 64
	offMarks    = offSlots + slots*cellSize

	slots    = 128
	cellSize = 192
	offID    = 8
	maxID    = 128
)

// The states of a slot.
const (
	slotFree uint32 = iota
	slotFilling
	slotBlamed
	slotAccused
)

// newPage makes a page for a worker that is told whom to suspect and what
// became of those before it.
func newPage(interval time.Duration, marks map[string]uint32, past History) (page, *os.File, error) {
	fd, err := unix.MemfdCreate("vhdx-supervisor", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, nil, fmt.Errorf("make the worker's page: %w", err)
	}
	f := os.NewFile(uintptr(fd), "supervisor page")
	if err := f.Truncate(pageSize); err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW); err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	p, err := mapPage(f)
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	copy(p, pageMagic)
	binary.LittleEndian.PutUint32(p[8:], pageVersion)
	binary.LittleEndian.PutUint64(p[offInterval:], uint64(interval))
	p.putHistory(past)
	i := 0
	for id, strikes := range marks {
		if i < slots {
			p.fill(p.cell(offMarks, i), id, strikes)
			i++
		}
	}
	return p, f, nil
}

func mapPage(f *os.File) (page, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var p []byte
	if cerr := raw.Control(func(fd uintptr) {
		p, err = unix.Mmap(int(fd), 0, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	}); cerr != nil {
		return nil, cerr
	}
	if err != nil {
		return nil, fmt.Errorf("map the worker's page: %w", err)
	}
	_ = unix.Mlock(p) // best effort: a beat must not wait for swap
	return p, nil
}

// openPage maps the page that a worker has inherited.
func openPage(f *os.File) (page, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() != pageSize {
		return nil, fmt.Errorf("page of %d bytes: %w", st.Size(), errPage)
	}
	p, err := mapPage(f)
	if err != nil {
		return nil, err
	}
	if string(p[:8]) != pageMagic || binary.LittleEndian.Uint32(p[8:]) != pageVersion {
		return nil, errors.Join(fmt.Errorf("page begins % x: %w", p[:12], errPage), unix.Munmap(p))
	}
	return p, nil
}

var errPage = errors.New("not a supervisor's page of this version")

func (p page) close() { _ = unix.Munmap(p) }

func (p page) word(off int) *atomic.Uint32 { return (*atomic.Uint32)(unsafe.Pointer(&p[off])) }
func (p page) beats() *atomic.Uint64       { return (*atomic.Uint64)(unsafe.Pointer(&p[offBeats])) }
func (p page) ready() bool                 { return p.word(offReady).Load() != 0 }
func (p page) interval() time.Duration {
	return time.Duration(binary.LittleEndian.Uint64(p[offInterval:]))
}
func (p page) cell(table, i int) (off int) { return table + i*cellSize }
func (p page) fill(off int, id string, state uint32) {
	binary.LittleEndian.PutUint32(p[off+4:], uint32(len(id)))
	copy(p[off+offID:][:maxID], id)
	p.word(off).Store(state)
}

// id of a cell; false if what is there can be none (I-SUP-6).
func (p page) id(off int) (string, bool) {
	n := binary.LittleEndian.Uint32(p[off+4:])
	if n == 0 || n > maxID {
		return "", false
	}
	return string(p[off+offID:][:n]), true
}

// culprits returns what the worker had accused or, without that, worked on.
func (p page) culprits() []string {
	var blamed, accused []string
	for i := range slots {
		off := p.cell(offSlots, i)
		id, ok := p.id(off)
		switch state := p.word(off).Load(); {
		case !ok:
		case state == slotBlamed && !slices.Contains(blamed, id):
			blamed = append(blamed, id)
		case state == slotAccused && !slices.Contains(accused, id):
			accused = append(accused, id)
		}
	}
	if len(accused) > 0 {
		return accused
	}
	return blamed
}

// strikes of an id.
func (p page) strikes(id string) uint32 {
	for i := range slots {
		off := p.cell(offMarks, i)
		if it, ok := p.id(off); ok && it == id {
			return p.word(off).Load()
		}
	}
	return 0
}

// marked calls do for each mark that counts.
func (p page) marked(do func(off int, id string, strikes uint32)) {
	for i := range slots {
		off := p.cell(offMarks, i)
		if id, ok := p.id(off); ok {
			if n := p.word(off).Load(); n > 0 {
				do(off, id, n)
			}
		}
	}
}
