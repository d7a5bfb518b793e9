package vhdx_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

// vast is a file of any size whose bytes from a place on are made when they are
// read: a table of 64 million entries costs no memory. Beyond what base holds
// it is a hole.
type vast struct {
	*vhdxtest.File
	size     int64
	from, to int64 // what is made
	make     func(word int64) uint64
}

func (v *vast) Size() (int64, error) { return v.size, nil }

func (v *vast) ReadAt(p []byte, off int64) (int, error) {
	n := int(min(int64(len(p)), max(0, v.size-off)))
	clear(p[:n])
	if _, err := v.File.ReadAt(p[:n], off); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	for at := max(off, v.from); at+8 <= min(off+int64(n), v.to); at += 8 {
		binary.LittleEndian.PutUint64(p[at-off:], v.make((at-v.from)/8))
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// NextData skips what is a hole.
func (v *vast) NextData(off, end int64) (int64, error) {
	if size, _ := v.File.Size(); off < size || off < v.to {
		return off, nil
	}
	return end, nil
}

// newVast is an image of 64 TiB in blocks of a size, whose BAT is made.
func newVast(t *testing.T, blockSize, size int64, entry func(i int64) uint64) *vast {
	t.Helper()
	f := vhdxtest.NewFile("vast.vhdx")
	if _, err := vhdx.CreateOn(f, vhdx.CreateOptions{Size: 64 * tib, BlockSize: blockSize}); err != nil {
		t.Fatal(err)
	}
	s := &spoil{t, f}
	bat := s.region(ondisk.RegionBAT)
	g := ondisk.Geometry{VirtualSize: 64 * tib, BlockSize: blockSize, LogicalSectorSize: 512}
	return &vast{File: f, size: size, from: bat, to: bat + g.Entries()*8, make: entry}
}

// peak returns the most that the heap grew by while do ran.
func peak(do func()) uint64 {
	defer debug.SetGCPercent(debug.SetGCPercent(10))
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	base, most := m.HeapAlloc, m.HeapAlloc
	done := make(chan struct{})
	sampled := make(chan struct{})
	go func() {
		defer close(sampled)
		for {
			select {
			case <-done:
				return
			case <-time.After(2 * time.Millisecond):
				runtime.ReadMemStats(&m)
				most = max(most, m.HeapAlloc)
			}
		}
	}()
	do()
	close(done)
	<-sampled
	return most - base
}

const maxCheckMemory = 64 << 20

func checkedHostile(t *testing.T, f vhdx.File) (*vhdx.Report, error) {
	t.Helper()
	var r *vhdx.Report
	var err error
	used := peak(func() { r, err = vhdx.Check(t.Context(), f, vhdx.CheckOptions{PerCode: 20}) })
	t.Logf("%d KiB, %v", used>>10, err)
	if used > maxCheckMemory {
		t.Errorf("the check took %d MiB of memory", used>>20)
	}
	return r, err
}

// Tables as large as the format allows, with every entry hostile (I-CHK-2).
func TestHostileTables(t *testing.T) {
	skipSlowRace(t)
	const everything = 64*tib + 600*mib
	tests := []struct {
		name  string
		block int64
		size  int64
		entry func(i int64) uint64
		code  vhdx.Code
		least int64 // findings of any severity
	}{
		{"all in one place", mib, everything, func(int64) uint64 { return uint64(present(600 * mib)) }, vhdx.CodeBATOverlap, 60 << 20},
		{"all over the log", 16 * mib, everything, func(int64) uint64 { return uint64(present(mib)) }, vhdx.CodeBATOverlap, 4 << 20},
		{"pairs, in reverse", 16 * mib, everything, func(i int64) uint64 { return uint64(present(64*tib + 584*mib - i/2*16*mib)) }, vhdx.CodeBATOverlap, 1 << 16},
		{"blocks that overlap their neighbours", 256 * mib, 128 * tib, func(i int64) uint64 { return uint64(present(8*mib + i*255*mib)) }, vhdx.CodeBATOverlap, 1 << 15},
		{"all beyond the file", 16 * mib, gib, func(i int64) uint64 { return uint64(present(tib + i*mib)) }, vhdx.CodeBATPlace, 4 << 20},
		{"noise", 16 * mib, everything, func(i int64) uint64 { return uint64(i) * 0x9e3779b97f4a7c15 }, vhdx.CodeBATReserved, 1 << 20},
		{"anchors over anchors", 16 * mib, everything, func(int64) uint64 { return uint64(600*mib | 3) }, vhdx.CodeBATOverlap, 4 << 20},
		{"all over a file of 256 TiB", 16 * mib, 256 * tib, func(i int64) uint64 { return uint64(present((i*32 + 600) * mib)) }, "", 0},
	}
	for _, tt := range tests {
		if testing.Short() { // the same in a table of 262,144 entries
			if tt.code == "" {
				continue
			}
			tt.block, tt.least = 256*mib, min(tt.least, 1<<12)
		}
		t.Run(tt.name, func(t *testing.T) {
			r, err := checkedHostile(t, newVast(t, tt.block, tt.size, tt.entry))
			if err != nil {
				t.Fatal(err)
			}
			total := int64(0)
			for _, n := range r.Counts {
				total += n
			}
			if tt.code != "" && !has(r, tt.code) || total < tt.least || len(r.Findings) > 200 {
				t.Fatalf("%d findings, %d listed: %v", total, len(r.Findings), r.Counts)
			}
			if (tt.code == "") != !r.Corrupt() {
				t.Fatalf("corrupt %v", r.Findings)
			}
		})
	}
}

// hostiles are small files that ask for much.
var hostiles = []struct {
	name string
	make func(s *spoil)
	says string // of the report's findings
}{
	{"a disk of 2^63 bytes", func(s *spoil) {
		s.put(s.region(ondisk.RegionMetadata)+0x10008, 0, 0, 0, 0, 0, 0, 0, 0x80)
	}, "is no multiple of 512 from 512 to 64 TiB"},
	{"a disk of 64 TiB with a BAT of 1 MiB", func(s *spoil) {
		s.put(s.region(ondisk.RegionMetadata)+0x10008, 0, 0, 0, 0, 0, 0x40, 0, 0)
	}, "needs"},
	{"a log of 4 GiB", func(s *spoil) {
		s.headers(func(h *ondisk.Header) { h.LogLength, h.LogGUID = 0xfff00000, unknown })
	}, "log length"},
	{"a log at the end of the address space", func(s *spoil) {
		s.headers(func(h *ondisk.Header) { h.LogOffset, h.LogGUID = 1<<63-ondisk.MiB, unknown })
	}, "overflows"},
	{"2,047 regions side by side", func(s *spoil) {
		s.Truncate(3 * gib)
		s.regions(func(r *ondisk.RegionTable) {
			for i := len(r.Regions); i < ondisk.MaxRegionEntries; i++ {
				r.Regions = append(r.Regions, ondisk.Region{ID: numbered(i), Offset: uint64(gib + int64(i)*mib), Length: ondisk.MiB})
			}
		})
	}, ""},
	{"2,047 regions in one place", func(s *spoil) {
		s.regions(func(r *ondisk.RegionTable) {
			for i := len(r.Regions); i < ondisk.MaxRegionEntries; i++ {
				r.Regions = append(r.Regions, ondisk.Region{ID: numbered(i), Offset: 3 * ondisk.MiB, Length: ondisk.MiB})
			}
		})
	}, "overlap the BAT region"},
	{"2,047 required regions", func(s *spoil) {
		s.regions(func(r *ondisk.RegionTable) {
			for i := len(r.Regions); i < ondisk.MaxRegionEntries; i++ {
				r.Regions = append(r.Regions, ondisk.Region{ID: numbered(i), Offset: uint64(gib + int64(i)*mib), Length: ondisk.MiB, Required: true})
			}
		})
	}, "is unknown"},
	{"regions of 4 GiB", func(s *spoil) {
		s.regions(func(r *ondisk.RegionTable) { r.Regions[0].Length = 0xfff00000 })
	}, "beyond the file's end"},
	{"one region twice", func(s *spoil) {
		s.regions(func(r *ondisk.RegionTable) { r.Regions = append(r.Regions, r.Regions...) })
	}, "repeats region"},
	{"2,047 items, all in one place", func(s *spoil) {
		b := s.bytes(s.region(ondisk.RegionMetadata), ondisk.MetadataTableSize)
		binary.LittleEndian.PutUint16(b[10:], 2047)
		for i := range 2047 {
			id := numbered(i)
			copy(b[32+32*i:], append(id[:], 0, 0, 1, 0, 0, 0, 15, 0, byte(i%2)))
		}
		s.put(s.region(ondisk.RegionMetadata), b...)
	}, "overlaps item"},
	{"65,535 items", func(s *spoil) { s.put(s.region(ondisk.RegionMetadata)+10, 0xff, 0xff) }, "at most 2047 are allowed"},
	{"an entry number that overflows", func(s *spoil) {
		l := &dirtyLog{spoil: s, guid: ondisk.NewGUID(), at: s.region(ondisk.RegionMetadata) + 512<<10}
		s.headers(func(h *ondisk.Header) { h.LogGUID = l.guid })
		l.write(0, 0, 1<<64-1, nil)
		l.write(2, 0, 0, func(e *ondisk.LogEntry) { e.SequenceNumber = 1 })
	}, "must be replayed"},
	{"a full log that wraps", func(s *spoil) {
		l := &dirtyLog{spoil: s, guid: ondisk.NewGUID(), at: s.region(ondisk.RegionMetadata) + 512<<10}
		s.headers(func(h *ondisk.Header) { h.LogGUID = l.guid })
		for i := range logSectors / 2 {
			l.write((2*i+101)%logSectors, 101, uint64(i+1), nil)
		}
	}, "must be replayed: 128 entries"},
	{"a zero descriptor of 8 EiB", func(s *spoil) {
		l := &dirtyLog{spoil: s, guid: ondisk.NewGUID(), at: s.region(ondisk.RegionMetadata) + 512<<10}
		s.headers(func(h *ondisk.Header) { h.LogGUID = l.guid })
		l.write(0, 0, 1, func(e *ondisk.LogEntry) {
			e.Descriptors = append(e.Descriptors, ondisk.LogDescriptor{Zero: true, FileOffset: 1 << 20 * 8, Length: 1<<63 - 1<<30})
		})
	}, "beyond any file"},
}

// numbered is a GUID that nobody knows.
func numbered(i int) ondisk.GUID {
	return ondisk.GUID{0: 0xee, 14: byte(i >> 8), 15: byte(i)}
}

// Nothing of it panics, hangs or takes memory; each says what is wrong; and a
// repair does no worse.
func TestHostileImages(t *testing.T) {
	for _, h := range hostiles {
		t.Run(h.name, func(t *testing.T) {
			s := newSpoil(t, 2)
			h.make(s)
			s.Sync()
			r, err := checkedHostile(t, s.File)
			if err != nil {
				t.Fatal(err)
			}
			if text := fmt.Sprint(r.Findings); !strings.Contains(text, h.says) || (h.says == "") != (len(r.Findings) == 0 || !r.Corrupt()) && h.says == "" {
				t.Fatalf("want %q: %v", h.says, text)
			}
			if err := repairHostile(t, s.File.Clone()); err != nil {
				t.Fatal(err)
			}
			if why := disagreement(s.File, r, nil); why != "" {
				t.Fatalf("%s: %v", why, r.Findings)
			}
			if err := useHostile(s.File.Clone()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// hugeLogLength is that of the logs in TestHostileLogs.
const hugeLogLength = 256 << 20 // the page of each entry alone would be more than a check may take

// hugeLog makes it.
func hugeLog(t *testing.T, sector func(i int64, guid ondisk.GUID) []byte) *logFile {
	t.Helper()
	f := vhdxtest.NewFile("log.vhdx")
	if _, err := vhdx.CreateOn(f, vhdx.CreateOptions{Size: gib, LogSize: hugeLogLength}); err != nil {
		t.Fatal(err)
	}
	s := &spoil{t, f}
	guid := ondisk.NewGUID()
	s.headers(func(h *ondisk.Header) { h.LogGUID = guid })
	return &logFile{f, func(i int64) []byte { return sector(i, guid) }}
}

type logFile struct {
	*vhdxtest.File
	sector func(i int64) []byte
}

func (l *logFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := l.File.ReadAt(p, off)
	for at := off; at < off+int64(n); {
		i := (at - mib) / ondisk.LogSectorSize
		part := p[at-off : min(int64(n), at-off+ondisk.LogSectorSize-at%ondisk.LogSectorSize)]
		if at >= mib && i < hugeLogLength/ondisk.LogSectorSize {
			copy(part, l.sector(i)[at%ondisk.LogSectorSize:])
		}
		at += int64(len(part))
	}
	return n, err
}

// encodeEntry encodes into a buffer that the next call overwrites.
func encodeEntry(t *testing.T, e ondisk.LogEntry) []byte {
	t.Helper()
	data := 0
	for _, d := range e.Descriptors {
		if !d.Zero {
			data++
		}
	}
	b := entryBuffer[:ondisk.LogEntryLength(len(e.Descriptors), data)]
	if err := e.Encode(b); err != nil {
		t.Fatal(err)
	}
	return b
}

var entryBuffer, pageBuffer [64 << 10]byte

// Logs that are large and full.
func TestHostileLogs(t *testing.T) {
	skipSlowRace(t)
	entry := func(guid ondisk.GUID, n uint64, tail int64, descriptors ...ondisk.LogDescriptor) ondisk.LogEntry {
		return ondisk.LogEntry{
			LogEntryHeader: ondisk.LogEntryHeader{SequenceNumber: n, LogGUID: guid, Tail: uint32(tail * ondisk.LogSectorSize)},
			Descriptors:    descriptors,
		}
	}
	tests := []struct {
		name   string
		sector func(i int64, guid ondisk.GUID) []byte
		says   string
	}{
		{"empty entries throughout", func(i int64, guid ondisk.GUID) []byte {
			return encodeEntry(t, entry(guid, uint64(i+1), 0))
		}, "must be replayed: 65536 entries"},
		{"a page of its own in every entry", func(i int64, guid ondisk.GUID) []byte {
			page := ondisk.LogDescriptor{FileOffset: uint64(2*gib + i/2*4096), Length: ondisk.PageSize, Data: pageBuffer[:ondisk.PageSize]}
			return encodeEntry(t, entry(guid, uint64(i/2+1), 0, page))[i%2*ondisk.LogSectorSize:][:ondisk.LogSectorSize]
		}, "must be replayed: 32768 entries"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, err := checkedHostile(t, hugeLog(t, tt.sector))
			if err != nil {
				t.Fatal(err)
			}
			if text := fmt.Sprint(r.Findings); !strings.Contains(text, tt.says) {
				t.Fatalf("want %q: %.1000v", tt.says, text)
			}
		})
	}
	t.Run("one entry of all the log", func(t *testing.T) {
		var whole []byte
		f := hugeLog(t, func(i int64, guid ondisk.GUID) []byte {
			if whole == nil { // the header claims it; the checksum would have to be right
				whole = bytes.Clone(encodeEntry(t, entry(guid, 1, 0)))
				binary.LittleEndian.PutUint32(whole[8:], hugeLogLength)
				binary.LittleEndian.PutUint32(whole[24:], hugeLogLength/32-2)
			}
			if i == 0 {
				return whole
			}
			return make([]byte, ondisk.LogSectorSize)
		})
		r, err := checkedHostile(t, f)
		if err != nil || len(r.Findings) == 0 || r.Stopped == "" {
			t.Fatalf("%v, %v", err, r)
		}
	})
}
