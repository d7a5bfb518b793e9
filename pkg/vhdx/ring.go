package vhdx

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"sync/atomic"
	"unsafe"
)

// Ring is a [Journal] in memory that outlives the process: a memfd that another
// process holds too. Killed at any instruction, it holds the records that were
// kept, and of the one being kept either all or nothing.
//
//	0      magic, version
//	64     dropped: all records up to this number may be overwritten
//	128    head slot 0   who may recognise the image; the valid slot with the
//	256    head slot 1   greater number counts
//	4096   records, 32 bytes each, number n at place n mod their count
//
//	head    0 number  8 active  16 FileWriteGuid  32 the next one  60 CRC-32C
//	record  0 number  8 entry  16 value  24 kind  28 CRC-32C
type Ring struct {
	mem     []byte
	dropped *atomic.Uint64
	slots   uint64
	last    uint64 // number of the last record
	head    uint64 // number of the last head
}

const (
	ringMagic      = "vhdxring"
	ringVersion    = 1
	ringDropped    = 64
	ringHeads      = 128
	ringHeadSize   = 128
	ringHeadCRC    = 60
	ringRecords    = 4096
	ringRecordSize = 32
	ringRecordCRC  = 28
)

// MinRingSize is the least memory a [Ring] takes.
const MinRingSize = ringRecords + 64*ringRecordSize

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// NewRing takes shared memory of at least [MinRingSize] bytes, 8-byte aligned:
// all zero, it becomes an empty ring; otherwise it must hold one, and what a
// dead process left in it is Pending.
func NewRing(mem []byte) (*Ring, error) {
	if len(mem) < MinRingSize || uintptr(unsafe.Pointer(unsafe.SliceData(mem)))%8 != 0 {
		return nil, fmt.Errorf("ring in %d bytes of memory: at least %d, 8-byte aligned, are needed: %w", len(mem), MinRingSize, ErrInvalid)
	}
	r := &Ring{
		mem:     mem,
		dropped: (*atomic.Uint64)(unsafe.Pointer(&mem[ringDropped])),
		slots:   uint64(len(mem)-ringRecords) / ringRecordSize,
	}
	switch {
	case string(mem[:8]) == ringMagic && binary.LittleEndian.Uint32(mem[8:]) == ringVersion:
	case allZero(mem[:ringRecords]):
		binary.LittleEndian.PutUint32(mem[8:], ringVersion)
		copy(mem, ringMagic)
	default:
		return nil, fmt.Errorf("memory holds no ring of version %d: % x: %w", ringVersion, mem[:12], ErrInvalid)
	}
	r.last = r.dropped.Load()
	for {
		if _, ok := r.record(r.last + 1); !ok {
			break
		}
		r.last++
	}
	return r, nil
}

// Pending implements [Journal].
func (r *Ring) Pending() (JournalState, error) {
	s := JournalState{LastSeq: r.last}
	if h := r.currentHead(); h != nil {
		r.head = binary.LittleEndian.Uint64(h)
		s.Active = h[8] == 1
		copy(s.FileWriteGUIDs[0][:], h[16:])
		copy(s.FileWriteGUIDs[1][:], h[32:])
	}
	for n := r.dropped.Load() + 1; n <= r.last; n++ {
		rec, _ := r.record(n)
		s.Records = append(s.Records, rec)
		s.Poisoned = s.Poisoned || rec.Kind == JournalPoisoned
	}
	return s, nil
}

// record returns a record if it is there, whole.
func (r *Ring) record(n uint64) (JournalRecord, bool) {
	b := r.slot(n)
	if binary.LittleEndian.Uint64(b) != n || crc32.Checksum(b[:ringRecordCRC], castagnoli) != binary.LittleEndian.Uint32(b[ringRecordCRC:]) {
		return JournalRecord{}, false
	}
	return JournalRecord{
		Seq: n, Kind: JournalKind(b[24]),
		Entry: binary.LittleEndian.Uint64(b[8:]), Value: binary.LittleEndian.Uint64(b[16:]),
	}, true
}

func (r *Ring) slot(n uint64) []byte {
	at := ringRecords + n%r.slots*ringRecordSize
	return r.mem[at:][:ringRecordSize]
}

// currentHead returns the valid head slot with the greater number, or nil.
func (r *Ring) currentHead() []byte {
	var best []byte
	for i := range 2 {
		h := r.mem[ringHeads+i*ringHeadSize:][:ringHeadSize]
		n := binary.LittleEndian.Uint64(h)
		if n == 0 || crc32.Checksum(h[:ringHeadCRC], castagnoli) != binary.LittleEndian.Uint32(h[ringHeadCRC:]) {
			continue
		}
		if best == nil || n > binary.LittleEndian.Uint64(best) {
			best = h
		}
	}
	return best
}

// writeHead fills the slot that is not current.
func (r *Ring) writeHead(active bool, present, next [16]byte) {
	r.head++
	h := r.mem[ringHeads+int(r.head%2)*ringHeadSize:][:ringHeadSize]
	clear(h)
	binary.LittleEndian.PutUint64(h, r.head)
	if active {
		h[8] = 1
	}
	copy(h[16:], present[:])
	copy(h[32:], next[:])
	binary.LittleEndian.PutUint32(h[ringHeadCRC:], crc32.Checksum(h[:ringHeadCRC], castagnoli))
}

// Announce implements [Journal].
func (r *Ring) Announce(present, next [16]byte) error {
	r.writeHead(true, present, next)
	return nil
}

// Record implements [Journal].
func (r *Ring) Record(rec JournalRecord) error {
	if rec.Seq != r.last+1 {
		return fmt.Errorf("record %d after %d: %w", rec.Seq, r.last, ErrInvalid)
	}
	if rec.Seq-r.dropped.Load() > r.slots-1 && rec.Kind != JournalPoisoned { // one place is kept for the last word
		return ErrJournalFull
	}
	b := r.slot(rec.Seq)
	binary.LittleEndian.PutUint32(b[ringRecordCRC:], 0)
	binary.LittleEndian.PutUint64(b[8:], rec.Entry)
	binary.LittleEndian.PutUint64(b[16:], rec.Value)
	clear(b[24:ringRecordCRC])
	b[24] = byte(rec.Kind)
	binary.LittleEndian.PutUint64(b, rec.Seq)
	binary.LittleEndian.PutUint32(b[ringRecordCRC:], crc32.Checksum(b[:ringRecordCRC], castagnoli))
	r.last = rec.Seq
	return nil
}

// Dropped implements [Journal].
func (r *Ring) Dropped(seq uint64) { r.dropped.Store(seq) }

// Reset implements [Journal].
func (r *Ring) Reset() error {
	r.dropped.Store(r.last)
	return nil
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
