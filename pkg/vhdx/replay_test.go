package vhdx_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// dirtyLog writes a log by hand: entries at sectors of the ring, each changing
// a page of the second MiB of block 0's space.
type dirtyLog struct {
	*spoil
	guid ondisk.GUID
	at   int64 // where block 0 lies
}

func newDirtyLog(t *testing.T) *dirtyLog {
	t.Helper()
	s := newSpoil(t, 2)
	l := &dirtyLog{spoil: s, guid: ondisk.NewGUID()}
	l.at = s.region(ondisk.RegionMetadata) + 512<<10 // unused bytes of the metadata region
	s.headers(func(h *ondisk.Header) { h.LogGUID = l.guid })
	return l
}

const logSectors = int(mib) / ondisk.LogSectorSize

// target is the page that entry n sets to byte n.
func (l *dirtyLog) target(n uint64) int64 { return l.at + int64(n%64)*ondisk.PageSize }

// entry puts entry number n at a sector, its Tail at another.
func (l *dirtyLog) write(sector, tail int, n uint64, change func(*ondisk.LogEntry)) {
	l.t.Helper()
	size, err := l.Size()
	if err != nil {
		l.t.Fatal(err)
	}
	e := ondisk.LogEntry{
		LogEntryHeader: ondisk.LogEntryHeader{
			Tail: uint32(tail * ondisk.LogSectorSize), SequenceNumber: n, LogGUID: l.guid,
			FlushedFileOffset: uint64(size), LastFileOffset: uint64(size),
		},
		Descriptors: []ondisk.LogDescriptor{{
			FileOffset: uint64(l.target(n)), Length: ondisk.PageSize, Data: bytes.Repeat([]byte{byte(n)}, ondisk.PageSize),
		}},
	}
	if change != nil {
		change(&e)
	}
	data := 0
	for _, d := range e.Descriptors {
		if !d.Zero {
			data++
		}
	}
	buf := make([]byte, ondisk.LogEntryLength(len(e.Descriptors), data))
	if err := e.Encode(buf); err != nil {
		l.t.Fatal(err)
	}
	for i, b := range slices.Collect(slices.Chunk(buf, ondisk.LogSectorSize)) {
		l.put(mib+int64((sector+i)%logSectors)*ondisk.LogSectorSize, b...)
	}
}

// applied returns which of the numbers 1..63 the replay applied.
func (l *dirtyLog) applied() []int {
	var got []int
	for n := range 64 {
		if b := l.bytes(l.target(uint64(n)), 1)[0]; b != 0 {
			if int(b) != n {
				l.t.Fatalf("page of entry %d holds %d", n, b)
			}
			got = append(got, n)
		}
	}
	return got
}

func TestReplayFindsTheActiveSequence(t *testing.T) {
	tests := []struct {
		name string
		log  func(l *dirtyLog)
		want []int
	}{
		{"one entry", func(l *dirtyLog) { l.write(0, 0, 1, nil) }, []int{1}},
		{"entries before the head's Tail stay out", func(l *dirtyLog) {
			for n := range 5 {
				tail := 0
				if n == 4 {
					tail = 2 * 3
				}
				l.write(2*n, tail, uint64(n+1), nil)
			}
		}, []int{4, 5}},
		{"an entry around the end of the ring", func(l *dirtyLog) {
			l.write(logSectors-3, logSectors-3, 7, nil)
			l.write(logSectors-1, logSectors-3, 8, nil)
			l.write(1, logSectors-3, 9, nil)
		}, []int{7, 8, 9}},
		{"another log's entries", func(l *dirtyLog) {
			old := func(e *ondisk.LogEntry) { e.LogGUID = unknown }
			l.write(0, 0, 1, old)
			l.write(2, 0, 2, old)
			l.write(4, 4, 3, nil)
			l.write(6, 0, 4, old)
		}, []int{3}},
		{"the greater of two sequences", func(l *dirtyLog) {
			l.write(0, 0, 20, nil)
			l.write(10, 10, 30, nil)
			l.write(12, 10, 31, nil)
			l.write(20, 20, 10, nil)
		}, []int{30, 31}},
		{"a gap in the numbers ends a sequence", func(l *dirtyLog) {
			l.write(0, 0, 1, nil)
			l.write(2, 0, 3, nil) // its Tail lies outside its own sequence
		}, []int{1}},
		{"a torn entry ends a sequence", func(l *dirtyLog) {
			l.write(0, 0, 1, nil)
			l.write(2, 0, 2, nil)
			l.put(mib+3*ondisk.LogSectorSize+100, 0xff)
		}, []int{1}},
		{"FlushedFileOffset 0 (Windows 8)", func(l *dirtyLog) {
			l.write(0, 0, 5, func(e *ondisk.LogEntry) { e.FlushedFileOffset = 0 })
		}, []int{5}},
		{"FlushedFileOffset above LastFileOffset", func(l *dirtyLog) {
			l.write(0, 0, 5, func(e *ondisk.LogEntry) { e.LastFileOffset = 3 << 20 })
		}, []int{5}},
		{"numbers from a random 63-bit start (Windows)", func(l *dirtyLog) {
			l.write(0, 0, 1<<62+3, nil)
			l.write(2, 0, 1<<62+4, nil)
		}, []int{3, 4}},
		{"zero descriptors", func(l *dirtyLog) {
			l.write(0, 0, 1, nil)
			l.write(2, 0, 2, nil)
			l.write(4, 0, 3, func(e *ondisk.LogEntry) {
				e.Descriptors = append(e.Descriptors, ondisk.LogDescriptor{Zero: true, FileOffset: uint64(l.target(1)), Length: ondisk.PageSize})
			})
		}, []int{2, 3}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := newDirtyLog(t)
			tt.log(l)
			before := l.bytes(ondisk.Header1Offset, ondisk.HeaderSize)
			ro := l.open(vhdx.OpenOptions{ReadOnly: true})
			entries := ro.Info().Replay.Entries
			closeImage(t, ro)
			l.Reopen()
			if got := l.applied(); got != nil || !bytes.Equal(before, l.bytes(ondisk.Header1Offset, ondisk.HeaderSize)) {
				t.Fatalf("a read-only open wrote to the file: %v", got)
			}
			im := l.open(vhdx.OpenOptions{})
			if got := im.Info().Replay.Entries; got != entries || got == 0 {
				t.Fatalf("%d entries replayed in memory, %d to disk", entries, got)
			}
			if got := l.applied(); !slices.Equal(got, tt.want) {
				t.Fatalf("applied %v, want %v", got, tt.want)
			}
			closeImage(t, im)
			l.Reopen()
			im = l.open(vhdx.OpenOptions{RefuseDirty: true})
			closeImage(t, im)
		})
	}
}

func TestReplayRefuses(t *testing.T) {
	tests := []struct {
		name string
		log  func(l *dirtyLog)
		says string
	}{
		{"a Tail outside the sequence", func(l *dirtyLog) { l.write(0, 100, 1, nil) }, "no valid sequence"},
		{"only another log's entries", func(l *dirtyLog) {
			l.write(0, 0, 1, func(e *ondisk.LogEntry) { e.LogGUID = unknown })
		}, "no valid sequence"},
		{"a truncated file", func(l *dirtyLog) {
			l.write(0, 0, 1, func(e *ondisk.LogEntry) { e.FlushedFileOffset = 1 << 30 })
		}, "truncated"},
		{"a descriptor into the log itself", func(l *dirtyLog) {
			l.write(0, 0, 1, func(e *ondisk.LogEntry) { e.Descriptors[0].FileOffset = uint64(mib) + 8192 })
		}, "no valid sequence"},
		{"a LastFileOffset beyond any file", func(l *dirtyLog) {
			l.write(0, 0, 1, func(e *ondisk.LogEntry) { e.LastFileOffset = 1 << 60 })
		}, "beyond any file"},
		{"a descriptor beyond any file", func(l *dirtyLog) {
			l.write(0, 0, 1, func(e *ondisk.LogEntry) { e.Descriptors[0].FileOffset = 1 << 60 })
		}, "beyond any file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, readOnly := range []bool{true, false} {
				l := newDirtyLog(t)
				tt.log(l)
				_, err := vhdx.Open(l.File, vhdx.OpenOptions{ReadOnly: readOnly})
				if !errors.Is(err, vhdx.ErrCorrupt) || !strings.Contains(err.Error(), tt.says) {
					t.Fatalf("read-only %v: %v, want %q", readOnly, err, tt.says)
				}
			}
		})
	}
}

// I-LOG-3: the file is extended to LastFileOffset, which QEMU forgets.
func TestReplayExtendsToLastFileOffset(t *testing.T) {
	l := newDirtyLog(t)
	l.write(0, 0, 1, func(e *ondisk.LogEntry) { e.LastFileOffset = uint64(40 * mib) })
	im := l.open(vhdx.OpenOptions{})
	if size, err := l.Size(); err != nil || size != 40*mib {
		t.Fatalf("size %#x, %v, want %#x", size, err, 40*mib)
	}
	closeImage(t, im)
}

// A log full of sectors that each claim an entry as long as the log must not
// cost the square of its size.
func TestReplayOfOverlappingClaimsIsBounded(t *testing.T) {
	l := newDirtyLog(t)
	for sector := logSectors - 1; sector >= 0; sector-- {
		e := make([]byte, ondisk.LogSectorSize)
		proto := ondisk.LogEntry{LogEntryHeader: ondisk.LogEntryHeader{SequenceNumber: 1, LogGUID: l.guid}}
		if err := proto.Encode(e); err != nil {
			t.Fatal(err)
		}
		data := logSectors - 4
		for n := range 4 { // EntryLength and DescriptorCount of the longest entry, whose checksum is wrong
			e[8+n] = byte(ondisk.LogEntryLength(data, data) >> (8 * n))
			e[24+n] = byte(data >> (8 * n))
		}
		l.put(mib+int64(sector)*ondisk.LogSectorSize, e...)
	}
	if _, err := vhdx.Open(l.File, vhdx.OpenOptions{}); !errors.Is(err, vhdx.ErrCorrupt) || !strings.Contains(err.Error(), "overlap") {
		t.Fatalf("got %v", err)
	}
}
