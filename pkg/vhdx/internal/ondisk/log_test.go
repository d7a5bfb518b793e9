package ondisk

import (
	"bytes"
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

func encodedEntry(t testing.TB, e LogEntry) []byte {
	t.Helper()
	pages := 0
	for _, d := range e.Descriptors {
		if !d.Zero {
			pages++
		}
	}
	b := bytes.Repeat([]byte{0xEE}, LogEntryLength(len(e.Descriptors), pages)) // what lay in the ring before
	if err := e.Encode(b); err != nil {
		t.Fatal(err)
	}
	return b
}

// sampleEntry has a data, a zero and a data descriptor.
func sampleEntry() LogEntry {
	page := make([]byte, PageSize)
	for i := range page {
		page[i] = byte(i*7) ^ byte(i>>8)
	}
	return LogEntry{
		LogEntryHeader{Tail: 4096, SequenceNumber: 0x1122334455667788, LogGUID: NewGUID(), FlushedFileOffset: 4 * MiB, LastFileOffset: 36 * MiB},
		[]LogDescriptor{
			{FileOffset: 3 * MiB, Length: PageSize, Data: page},
			{Zero: true, FileOffset: 8 * MiB, Length: 2 * MiB},
			{FileOffset: 192 * KiB, Length: PageSize, Data: bytes.Repeat([]byte("data"), 1024)},
		},
	}
}

func TestLogEntryBytes(t *testing.T) {
	b := encodedEntry(t, sampleEntry())
	page := sampleEntry().Descriptors[0].Data
	if len(b) != 3*4096 || string(b[:4]) != "loge" || le.Uint32(b[8:]) != 3*4096 || le.Uint32(b[24:]) != 3 {
		t.Fatalf("header % x", b[:64])
	}
	d := b[64:96]
	if string(d[:4]) != "desc" || !bytes.Equal(d[4:8], page[4092:]) || !bytes.Equal(d[8:16], page[:8]) || le.Uint64(d[24:]) != 0x1122334455667788 {
		t.Fatalf("data descriptor % x", d)
	}
	if z := b[96:128]; string(z[:8]) != "zero\x00\x00\x00\x00" || le.Uint64(z[8:]) != 2*MiB || le.Uint64(z[16:]) != 8*MiB {
		t.Fatalf("zero descriptor % x", z)
	}
	if tail := b[64+3*32 : 4096]; len(bytes.Trim(tail, "\x00")) != 0 {
		t.Fatal("old bytes of the ring after the last descriptor")
	}
	s := b[4096:8192]
	if string(s[:8]) != "data\x44\x33\x22\x11" || string(s[4092:]) != "\x88\x77\x66\x55" || !bytes.Equal(s[8:4092], page[8:4092]) {
		t.Fatalf("data sector % x … % x", s[:16], s[4088:])
	}
}

func TestLogEntryRoundTrip(t *testing.T) { // I-OD-1
	descriptor := rapid.Custom(func(t *rapid.T) LogDescriptor {
		d := LogDescriptor{FileOffset: rapid.Uint64Range(48, 1<<50).Draw(t, "page") * PageSize, Length: PageSize}
		if d.Zero = rapid.Bool().Draw(t, "zero"); d.Zero {
			d.Length = rapid.Uint64Range(0, 1<<40).Draw(t, "pages") * PageSize
		} else {
			d.Data = bytes.Repeat(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "data"), PageSize/16)
		}
		return d
	})
	rapid.Check(t, func(t *rapid.T) {
		want := LogEntry{
			LogEntryHeader{
				Tail:              rapid.Uint32Range(0, 255).Draw(t, "tail") * LogSectorSize,
				SequenceNumber:    rapid.Uint64Range(1, math.MaxUint64).Draw(t, "sequence"),
				LogGUID:           genGUID.Draw(t, "guid"),
				FlushedFileOffset: rapid.Uint64Range(0, math.MaxInt64).Draw(t, "flushed"),
				LastFileOffset:    rapid.Uint64Range(0, math.MaxInt64).Draw(t, "last"),
			},
			rapid.SliceOfN(descriptor, 0, 150).Draw(t, "descriptors"),
		}
		pages := 0
		for _, d := range want.Descriptors {
			if !d.Zero {
				pages++
			}
		}
		want.DescriptorCount, want.EntryLength = uint32(len(want.Descriptors)), uint32(LogEntryLength(len(want.Descriptors), pages))
		b := make([]byte, want.EntryLength)
		if err := want.Encode(b); err != nil {
			t.Fatal(err)
		}
		got, err := DecodeLogEntry(b, MiB)
		if err != nil {
			t.Fatal(err)
		}
		if !sameEntry(got, want) {
			t.Fatal(cmp.Diff(want, got, cmpopts.EquateEmpty()))
		}
	})
}

// sameEntry is cmp.Equal, a hundred times faster.
func sameEntry(a, b LogEntry) bool {
	return a.LogEntryHeader == b.LogEntryHeader && slices.EqualFunc(a.Descriptors, b.Descriptors, func(a, b LogDescriptor) bool {
		return a.Zero == b.Zero && a.FileOffset == b.FileOffset && a.Length == b.Length && bytes.Equal(a.Data, b.Data)
	})
}

func TestLogEntryLengths(t *testing.T) {
	for _, tt := range []struct{ descriptors, pages, sectors int }{
		{0, 0, 1}, {1, 1, 2}, {126, 126, 127}, {127, 127, 129}, {126, 0, 1}, {254, 254, 256}, {255, 0, 3},
	} {
		if got := LogEntryLength(tt.descriptors, tt.pages); got != tt.sectors*4096 {
			t.Fatalf("%d descriptors, %d pages: %d bytes, want %d sectors", tt.descriptors, tt.pages, got, tt.sectors)
		}
	}
	if got := MaxLogPages(MiB); got != 253 {
		t.Fatalf("1 MiB log: %d pages, want 253", got)
	}
	for length := uint32(0); length <= 64*MiB; length += 256 * KiB {
		n := MaxLogPages(length)
		if n > 0 && LogEntryLength(n, n) > int(length)-LogSectorSize || LogEntryLength(n+1, n+1) <= int(length)-LogSectorSize {
			t.Fatalf("log of %d bytes: %d pages is not the most that fit", length, n)
		}
	}
}

func TestLogEntryHeaderRules(t *testing.T) {
	tests := []struct {
		rule   string
		change func(b []byte)
		offset int // -1: accepted
	}{
		{"as it is", func([]byte) {}, -1},
		{"length 0", func(b []byte) { le.PutUint32(b[8:], 0) }, 8},
		{"length unaligned", func(b []byte) { le.PutUint32(b[8:], 4097) }, 8},
		{"length beyond the log", func(b []byte) { le.PutUint32(b[8:], MiB+4096) }, 8},
		{"tail unaligned", func(b []byte) { le.PutUint32(b[12:], 1) }, 12},
		{"tail beyond the log", func(b []byte) { le.PutUint32(b[12:], MiB) }, 12},
		{"sequence number 0", func(b []byte) { le.PutUint64(b[16:], 0) }, 16},
		{"sequence number 2^64-1", func(b []byte) { le.PutUint64(b[16:], math.MaxUint64) }, -1},
		{"too few descriptors for the length", func(b []byte) { le.PutUint32(b[24:], 1) }, 24},
		{"too many descriptors for the length", func(b []byte) { le.PutUint32(b[24:], 127+256) }, 24},
		{"2^32-1 descriptors", func(b []byte) { le.PutUint32(b[24:], math.MaxUint32) }, 24},
		{"flushed beyond int64", func(b []byte) { le.PutUint64(b[48:], 1<<63) }, 48},
		{"last beyond int64", func(b []byte) { le.PutUint64(b[56:], 1<<63) }, 56},
		{"flushed 0, as Windows wrote", func(b []byte) { le.PutUint64(b[48:], 0) }, -1},
		{"flushed above last, unaligned", func(b []byte) { le.PutUint64(b[48:], 37*MiB+512) }, -1},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			b := encodedEntry(t, sampleEntry())
			tt.change(b)
			_, err := DecodeLogEntryHeader(b, MiB)
			if tt.offset >= 0 {
				wantError(t, err, "log entry header", tt.offset, "")
			} else if err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestLogEntryRules(t *testing.T) {
	const zero, last = 64 + 32, 64 + 64 // descriptors
	tests := []struct {
		rule      string
		change    func(b []byte)
		structure string
		offset    int
	}{
		{"descriptor's signature", func(b []byte) { b[zero] = 'Z' }, "log descriptor", zero},
		{"descriptor's sequence number", func(b []byte) { b[zero+24]++ }, "log descriptor", zero + 24},
		{"zero length unaligned", func(b []byte) { b[zero+8] = 1 }, "log descriptor", zero + 8},
		{"file offset unaligned", func(b []byte) { b[zero+16] = 1 }, "log descriptor", zero + 16},
		{"target in the headers", func(b []byte) { le.PutUint64(b[last+16:], 188*KiB) }, "log descriptor", last + 16},
		{"target overflows", func(b []byte) { le.PutUint64(b[zero+16:], math.MaxInt64-MiB+1) }, "log descriptor", zero + 16},
		{"target beyond int64", func(b []byte) { le.PutUint64(b[last+16:], 1<<63) }, "log descriptor", last + 16},
		{"zero length beyond int64", func(b []byte) { le.PutUint64(b[zero+8:], 1<<63) }, "log descriptor", zero + 16},
		{"data sector's signature", func(b []byte) { b[4096] = 'D' }, "log data sector", 4096},
		{"data sector's upper sequence half", func(b []byte) { b[8192+4]++ }, "log data sector", 8192 + 4},
		{"data sector's lower sequence half", func(b []byte) { b[8192+4092]++ }, "log data sector", 8192 + 4},
		{"a data descriptor without data sector", func(b []byte) { copy(b[zero:], "desc") }, "log entry", last},
		{"a data sector without data descriptor", func(b []byte) { copy(b[last:], "zero"); clear(b[last+8 : last+16]) }, "log entry", 8192},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			b := encodedEntry(t, sampleEntry())
			tt.change(b)
			if _, err := DecodeLogEntry(b, MiB); !errors.Is(err, ErrChecksum) { // I-OD-2
				t.Fatalf("without new checksum: %v", err)
			}
			le.PutUint32(b[4:], Checksum(b, 4))
			_, err := DecodeLogEntry(b, MiB)
			wantError(t, err, tt.structure, tt.offset, "")
		})
	}
	b := encodedEntry(t, sampleEntry())
	if _, err := DecodeLogEntry(b[:8192], MiB); err == nil {
		t.Fatal("part of an entry accepted")
	}
	b[4] ^= 1
	if _, err := DecodeLogEntry(b, MiB); !errors.Is(err, ErrChecksum) {
		t.Fatalf("checksum: %v", err)
	}
	b[0] = 0
	if _, err := DecodeLogEntry(b, MiB); !errors.Is(err, ErrSignature) {
		t.Fatalf("signature: %v", err)
	}
}

func TestLogEntryEncodeRefuses(t *testing.T) {
	e := sampleEntry()
	for _, n := range []int{0, 64, 4096, 2 * 4096, 4 * 4096} {
		if err := e.Encode(make([]byte, n)); err == nil {
			t.Fatalf("encoded into %d bytes", n)
		}
	}
	e.Descriptors[0].Data = e.Descriptors[0].Data[:100]
	if err := e.Encode(make([]byte, 3*4096)); err == nil {
		t.Fatal("encoded a short page")
	}
}

func TestLogEntryEncodeAllocatesNothing(t *testing.T) {
	e, b := sampleEntry(), make([]byte, 3*4096)
	if n := testing.AllocsPerRun(100, func() { _ = e.Encode(b) }); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func FuzzDecodeLogEntry(f *testing.F) {
	f.Add(encodedEntry(f, sampleEntry()), uint32(MiB))
	f.Add(encodedEntry(f, LogEntry{LogEntryHeader: LogEntryHeader{SequenceNumber: 1}}), uint32(MiB))
	f.Fuzz(func(t *testing.T, b []byte, length uint32) { // I-OD-3
		if len(b) >= 8 {
			le.PutUint32(b[4:], Checksum(b, 4))
		}
		e, err := DecodeLogEntry(b, length)
		if err != nil {
			return
		}
		for _, d := range e.Descriptors {
			if int64(d.FileOffset) < 192*KiB || int64(d.FileOffset)+int64(d.Length) < 192*KiB { // I-OD-5
				t.Fatalf("accepted %#x+%#x", d.FileOffset, d.Length)
			}
		}
		again := make([]byte, len(b))
		if err := e.Encode(again); err != nil {
			t.Fatal(err)
		}
		if got, err := DecodeLogEntry(again, length); err != nil || !sameEntry(got, e) {
			t.Fatalf("%+v, %v; want %+v", got, err, e)
		}
	})
}

func BenchmarkLogEntryEncode(b *testing.B) {
	e, dst := sampleEntry(), make([]byte, 3*4096)
	b.SetBytes(int64(len(dst)))
	for b.Loop() {
		if err := e.Encode(dst); err != nil {
			b.Fatal(err)
		}
	}
}
