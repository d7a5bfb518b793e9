package vhdxtest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"sync"
)

// Everything below is written anew from MS-VHDX and shares nothing with the
// codec that it judges: a mistake there must not be repeated here.

const mib = 1 << 20

// Header is a header slot of an image.
type Header struct {
	Slot                              int
	Sequence                          uint64
	FileWriteGUID, DataWriteGUID, Log [16]byte
	LogOffset, LogLength              int64
}

// Clean reports whether the log is empty.
func (h *Header) Clean() bool { return h.Log == [16]byte{} }

// Layout is where everything lies in a clean image.
type Layout struct {
	Header      Header
	FileSize    int64
	BAT         Extent
	Metadata    Extent
	VirtualSize int64
	BlockSize   int64
	SectorSize  int64
	Fixed       bool
	HasParent   bool
	// Blocks are the file offsets of the allocated payload blocks by number,
	// Partial those of the partially present ones, Bitmaps those of the sector
	// bitmaps by chunk.
	Blocks, Partial, Bitmaps map[int64]int64
}

// ratio is the number of payload blocks in a chunk.
func (l *Layout) ratio() int64 { return (l.SectorSize << 23) / l.BlockSize }

// Present reports whether the sector at an offset of the virtual disk, in a
// partially present block, is in the file.
func (l *Layout) Present(r io.ReaderAt, off int64) (bool, error) {
	sector := off / l.SectorSize
	var b [1]byte
	if _, err := r.ReadAt(b[:], l.Bitmaps[sector>>23]+sector%(1<<23)/8); err != nil {
		return false, fmt.Errorf("read sector bitmap: %w", err)
	}
	return b[0]>>(sector%8)&1 != 0, nil
}

// Headers returns the valid headers of an image, the current one first.
func Headers(r io.ReaderAt) ([]Header, error) {
	var valid []Header
	for slot := range 2 {
		b := make([]byte, 4096)
		if _, err := r.ReadAt(b, int64(slot+1)*0x10000); err != nil {
			return nil, fmt.Errorf("read header %d: %w", slot+1, err)
		}
		if string(b[:4]) != "head" || checksum(b) != binary.LittleEndian.Uint32(b[4:]) {
			continue
		}
		valid = append(valid, Header{
			Slot:          slot + 1,
			Sequence:      binary.LittleEndian.Uint64(b[8:]),
			FileWriteGUID: [16]byte(b[16:]), DataWriteGUID: [16]byte(b[32:]), Log: [16]byte(b[48:]),
			LogLength: int64(binary.LittleEndian.Uint32(b[68:])), LogOffset: int64(binary.LittleEndian.Uint64(b[72:])),
		})
	}
	if len(valid) == 0 {
		return nil, errors.New("no valid header")
	}
	slices.SortStableFunc(valid, func(a, b Header) int {
		if a.Sequence >= b.Sequence {
			return -1
		}
		return 1
	})
	return valid, nil
}

// checksum is CRC-32C of b with bytes 4 to 7 taken as zero.
func checksum(b []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(0, table, b[:4])
	sum = crc32.Update(sum, table, zeroPage[:4])
	return crc32.Update(sum, table, b[8:])
}

// ReadLayout reads an image that was closed and checks what must be true of
// one: both headers valid and alike, log clean, region tables alike, no two
// structures in one megabyte, nothing beyond the end of the file.
func ReadLayout(f *File) (*Layout, error) {
	hs, err := Headers(f)
	if err != nil {
		return nil, err
	}
	if len(hs) != 2 {
		return nil, fmt.Errorf("only header %d is valid", hs[0].Slot)
	}
	if hs[0].FileWriteGUID != hs[1].FileWriteGUID || hs[0].DataWriteGUID != hs[1].DataWriteGUID || hs[0].Log != hs[1].Log {
		return nil, fmt.Errorf("headers end different: %+v", hs)
	}
	if !hs[0].Clean() {
		return nil, fmt.Errorf("log is not clean: LogGuid %x", hs[0].Log)
	}
	l := &Layout{Header: hs[0]}
	if l.FileSize, err = f.Size(); err != nil {
		return nil, err
	}
	for _, step := range []func(*File) error{l.readRegions, l.readMetadata, l.readBAT} {
		if err := step(f); err != nil {
			return nil, err
		}
	}
	return l, l.checkOverlap()
}

var (
	regionBAT      = [16]byte{0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42, 0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08}
	regionMetadata = [16]byte{0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b, 0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e}
	itemParameters = [16]byte{0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d, 0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b}
	itemSize       = [16]byte{0x24, 0x42, 0xa5, 0x2f, 0x1b, 0xcd, 0x76, 0x48, 0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8}
	itemSector     = [16]byte{0x1d, 0xbf, 0x41, 0x81, 0x6f, 0xa9, 0x09, 0x47, 0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f}
)

const regionTableSize = 0x10000

var tableRoom = sync.Pool{New: func() any { return new([2][regionTableSize]byte) }}

func (l *Layout) readRegions(f *File) error {
	room := tableRoom.Get().(*[2][regionTableSize]byte)
	defer tableRoom.Put(room)
	tables := room[:]
	for i := range tables {
		b := tables[i][:]
		if _, err := f.ReadAt(b, 0x30000+int64(i)*0x10000); err != nil {
			return fmt.Errorf("read region table %d: %w", i+1, err)
		}
		if string(b[:4]) != "regi" || checksum(b) != binary.LittleEndian.Uint32(b[4:]) {
			return fmt.Errorf("region table %d is not valid", i+1)
		}
	}
	if tables[0] != tables[1] {
		return errors.New("region tables differ")
	}
	b := tables[0][:]
	for i := range binary.LittleEndian.Uint32(b[8:]) {
		e := b[16+32*i:]
		where := Extent{int64(binary.LittleEndian.Uint64(e[16:])), int64(binary.LittleEndian.Uint32(e[24:]))}
		switch [16]byte(e) {
		case regionBAT:
			l.BAT = where
		case regionMetadata:
			l.Metadata = where
		}
	}
	if l.BAT.N == 0 || l.Metadata.N == 0 {
		return errors.New("a region is missing")
	}
	return nil
}

func (l *Layout) readMetadata(f *File) error {
	table := make([]byte, 0x10000)
	if _, err := f.ReadAt(table, l.Metadata.Off); err != nil {
		return fmt.Errorf("read metadata table: %w", err)
	}
	for i := range int(binary.LittleEndian.Uint16(table[10:])) {
		e := table[32+32*i:]
		item := make([]byte, 8)
		if _, err := f.ReadAt(item, l.Metadata.Off+int64(binary.LittleEndian.Uint32(e[16:]))); err != nil {
			return fmt.Errorf("read metadata item %d: %w", i, err)
		}
		switch [16]byte(e) {
		case itemParameters:
			l.BlockSize = int64(binary.LittleEndian.Uint32(item))
			l.Fixed, l.HasParent = item[4]&1 != 0, item[4]&2 != 0
		case itemSize:
			l.VirtualSize = int64(binary.LittleEndian.Uint64(item))
		case itemSector:
			l.SectorSize = int64(binary.LittleEndian.Uint32(item))
		}
	}
	if l.BlockSize == 0 || l.VirtualSize == 0 || l.SectorSize == 0 {
		return fmt.Errorf("metadata is incomplete: %+v", l)
	}
	return nil
}

// readBAT skips the holes of the table, which are entries of zero.
func (l *Layout) readBAT(f *File) error {
	l.Blocks, l.Partial, l.Bitmaps = map[int64]int64{}, map[int64]int64{}, map[int64]int64{}
	ratio := l.ratio()
	blocks := (l.VirtualSize + l.BlockSize - 1) / l.BlockSize
	entries := blocks + (blocks-1)/ratio
	if l.HasParent {
		entries = (blocks + ratio - 1) / ratio * (ratio + 1)
	}
	if entries*8 > l.BAT.N {
		return fmt.Errorf("BAT of %#x bytes is too short for %d entries", l.BAT.N, entries)
	}
	return f.NonZero(l.BAT.Off, l.BAT.Off+entries*8, func(off int64, page []byte) error {
		for i := range int64(pageSize / 8) {
			index := (off-l.BAT.Off)/8 + i
			e := binary.LittleEndian.Uint64(page[i*8:])
			if e == 0 || index >= entries {
				continue
			}
			if err := l.addEntry(index, ratio, e); err != nil {
				return err
			}
		}
		return nil
	})
}

func (l *Layout) addEntry(index, ratio int64, e uint64) error {
	state, at := e&7, int64(e&^0xfffff)
	switch {
	case e&0xffff8 != 0:
		return fmt.Errorf("BAT entry %d is %#x: reserved bits", index, e)
	case (index+1)%(ratio+1) == 0 && l.HasParent && state == 6 && at != 0:
		l.Bitmaps[index/(ratio+1)] = at
	case (index+1)%(ratio+1) == 0:
		return fmt.Errorf("BAT entry %d is %#x: a sector bitmap without a parent", index, e)
	case state == 6 && at != 0:
		l.Blocks[index-index/(ratio+1)] = at
	case state == 7 && at != 0 && l.HasParent:
		l.Partial[index-index/(ratio+1)] = at
	case state > 3 || at != 0:
		return fmt.Errorf("BAT entry %d is %#x", index, e)
	}
	return nil
}

// checkOverlap proves that no two structures share a megabyte and all lie in
// the file.
func (l *Layout) checkOverlap() error {
	users := map[int64]string{0: "header section"}
	add := func(name string, e Extent) error {
		if e.Off%mib != 0 || e.Off+e.N > l.FileSize {
			return fmt.Errorf("%s at %#x, %#x bytes: not aligned or beyond the file's end %#x", name, e.Off, e.N, l.FileSize)
		}
		for at := e.Off / mib; at*mib < e.Off+e.N; at++ {
			if users[at] != "" {
				return fmt.Errorf("%s and %s share the megabyte at %#x", name, users[at], at*mib)
			}
			users[at] = name
		}
		return nil
	}
	err := errors.Join(
		add("log", Extent{l.Header.LogOffset, l.Header.LogLength}),
		add("BAT", l.BAT), add("metadata", l.Metadata))
	for block, at := range l.Blocks {
		err = errors.Join(err, add(fmt.Sprintf("payload block %d", block), Extent{at, l.BlockSize}))
	}
	for block, at := range l.Partial {
		err = errors.Join(err, add(fmt.Sprintf("partial payload block %d", block), Extent{at, l.BlockSize}))
		if l.Bitmaps[block/l.ratio()] == 0 {
			err = errors.Join(err, fmt.Errorf("payload block %d is partially present and its chunk has no sector bitmap", block))
		}
	}
	for chunk, at := range l.Bitmaps {
		err = errors.Join(err, add(fmt.Sprintf("sector bitmap %d", chunk), Extent{at, mib}))
	}
	return err
}

// End returns where the last structure ends: the size of a file without an
// unused tail.
func (l *Layout) End() int64 {
	end := max(l.Header.LogOffset+l.Header.LogLength, l.BAT.Off+l.BAT.N, l.Metadata.Off+l.Metadata.N)
	for _, blocks := range []map[int64]int64{l.Blocks, l.Partial} {
		for _, at := range blocks {
			end = max(end, at+l.BlockSize)
		}
	}
	for _, at := range l.Bitmaps {
		end = max(end, at+mib)
	}
	return end
}
