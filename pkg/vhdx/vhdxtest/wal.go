package vhdxtest

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Watcher looks at every write to metadata and proves that it is the copy of a
// page that the durable log holds (write-ahead). A power cut may need rare
// company to turn a broken rule into damage; the watcher sees the first breach.
type Watcher struct {
	places []Extent // of the regions, as of regionTable
	seen   *pages
}

const (
	regionTables    = 0x30000
	regionTablesEnd = 0x50000
)

// Check looks at the last operation of s.
func (w *Watcher) Check(s *Snapshot) error {
	if len(s.ops) == 0 {
		return nil
	}
	last := &s.ops[len(s.ops)-1]
	if last.kind != Write || last.state != pending || last.n%pageSize != 0 || last.off%pageSize != 0 {
		return nil
	}
	on := s.durable()
	if err := w.readRegions(on); err != nil {
		return err
	}
	if !w.metadata(last.off) {
		return nil
	}
	log, err := readLog(on)
	if err != nil {
		return fmt.Errorf("write of metadata at %#x: %w", last.off, err)
	}
	for at := int64(0); at < last.n; at += pageSize {
		if data := last.data[at : at+pageSize]; !on.holds(data, last.off+at) && !log.holds(last.off+at, data) {
			return fmt.Errorf("step %d writes %#x bytes at %#x, and no durable entry of the log holds the page at %#x", s.step, last.n, last.off, last.off+at)
		}
	}
	return nil
}

// durable returns what of s is on the medium for certain.
func (s *Snapshot) durable() *pages {
	m := s.base.share()
	for i := range s.ops {
		if s.ops[i].state == durable {
			s.ops[i].apply(m)
		}
	}
	return m
}

// holds reports whether a page has this content: writing it changes nothing.
func (s *pages) holds(data []byte, off int64) bool {
	p := s.page(off / pageSize)
	return p == nil && isZero(data) || p != nil && string(p.data[:]) == string(data)
}

// readRegions finds the regions that the region table in its place names.
func (w *Watcher) readRegions(on *pages) error {
	if w.seen != nil && w.seen.page(regionTables/pageSize) == on.page(regionTables/pageSize) {
		return nil
	}
	w.seen = on
	b := make([]byte, 0x10000)
	on.readAt(b, regionTables)
	if checksum(b) != binary.LittleEndian.Uint32(b[4:]) {
		return nil // torn by a cut: the ones known before hold
	}
	w.places = w.places[:0]
	for i := range binary.LittleEndian.Uint32(b[8:]) {
		e := b[16+32*i:]
		w.places = append(w.places, Extent{int64(binary.LittleEndian.Uint64(e[16:])), int64(binary.LittleEndian.Uint32(e[24:]))})
	}
	return nil
}

func (w *Watcher) metadata(off int64) bool {
	if off >= regionTables && off < regionTablesEnd {
		return true
	}
	for _, p := range w.places {
		if off >= p.Off && off < p.Off+p.N {
			return true
		}
	}
	return false
}

// ring is the log as it lies on the medium.
type ring struct {
	on    *pages
	where Extent
	guid  [16]byte
	// sectors of entries' headers, by position
	entries []int64
	room    []byte // of read
}

func readLog(on *pages) (*ring, error) {
	hs, err := Headers(reader{on})
	if err != nil {
		return nil, err
	}
	r := &ring{on: on, where: Extent{hs[0].LogOffset, hs[0].LogLength}, guid: hs[0].Log}
	if hs[0].Clean() {
		return nil, errors.New("no durable header names a log")
	}
	err = on.each(r.where.Off, r.where.Off+r.where.N, func(off int64, b []byte) error {
		if string(b[:4]) == "loge" && [16]byte(b[32:]) == r.guid && r.whole(off-r.where.Off, b) {
			r.entries = append(r.entries, off-r.where.Off)
		}
		return nil
	})
	return r, err
}

// reader reads pages as a file.
type reader struct{ *pages }

func (r reader) ReadAt(p []byte, off int64) (int, error) {
	r.readAt(p, off)
	return len(p), nil
}

// read returns n bytes from a position on, around the end of the ring, good
// until the next read.
func (r *ring) read(n, pos int64) []byte {
	if int64(cap(r.room)) < n {
		r.room = make([]byte, n)
	}
	all := r.room[:n]
	for p := all; len(p) > 0; {
		pos %= r.where.N
		n := min(int64(len(p)), r.where.N-pos)
		r.on.readAt(p[:n], r.where.Off+pos)
		p, pos = p[n:], pos+n
	}
	return all
}

func (r *ring) whole(pos int64, head []byte) bool {
	length := int64(binary.LittleEndian.Uint32(head[8:]))
	if length < pageSize || length > r.where.N || length%pageSize != 0 {
		return false
	}
	b := r.read(length, pos)
	return checksum(b) == binary.LittleEndian.Uint32(b[4:])
}

// holds reports whether an entry holds these bytes for the page at off.
func (r *ring) holds(off int64, data []byte) bool {
	for _, pos := range r.entries {
		b := r.read(int64(binary.LittleEndian.Uint32(r.read(pageSize, pos)[8:])), pos)
		count := int(binary.LittleEndian.Uint32(b[24:]))
		sector := (64 + 32*count + pageSize - 1) / pageSize
		for i := range count {
			d := b[64+32*i:]
			at := int64(binary.LittleEndian.Uint64(d[16:]))
			if string(d[:4]) == "zero" {
				if at <= off && off < at+int64(binary.LittleEndian.Uint64(d[8:])) && isZero(data) {
					return true
				}
				continue
			}
			body := b[sector*pageSize:][:pageSize]
			sector++
			if at == off && string(d[8:16]) == string(data[:8]) &&
				string(body[8:4092]) == string(data[8:4092]) && string(d[4:8]) == string(data[4092:]) {
				return true
			}
		}
	}
	return false
}
