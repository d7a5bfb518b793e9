package ondisk

import (
	"errors"
	"math"
	"testing"

	"pgregory.net/rapid"
)

var genHeader = rapid.Custom(func(t *rapid.T) Header {
	return Header{
		SequenceNumber: rapid.Uint64().Draw(t, "sequence"),
		FileWriteGUID:  genGUID.Draw(t, "file"),
		DataWriteGUID:  genGUID.Draw(t, "data"),
		LogGUID:        genGUID.Draw(t, "log"),
		LogVersion:     rapid.Uint16().Draw(t, "log version"),
		Version:        rapid.Uint16().Draw(t, "version"),
		LogLength:      rapid.Uint32().Draw(t, "length"),
		LogOffset:      rapid.Uint64().Draw(t, "offset"),
	}
})

func validHeader() Header {
	return Header{SequenceNumber: 7, FileWriteGUID: NewGUID(), DataWriteGUID: NewGUID(), LogGUID: NewGUID(), Version: 1, LogLength: MiB, LogOffset: MiB}
}

func TestHeaderRoundTrip(t *testing.T) { // I-OD-1
	rapid.Check(t, func(t *rapid.T) {
		want := genHeader.Draw(t, "header")
		b := make([]byte, HeaderSize)
		want.Encode(b)
		if got, err := DecodeHeader(b); err != nil || got != want {
			t.Fatalf("%+v, %v; want %+v", got, err, want)
		}
	})
}

func TestHeaderChecksumCoversAll(t *testing.T) { // I-OD-2
	b := make([]byte, HeaderSize)
	validHeader().Encode(b)
	for i := range b {
		b[i] ^= 1
		_, err := DecodeHeader(b)
		switch {
		case i < 4 && !errors.Is(err, ErrSignature), i >= 4 && !errors.Is(err, ErrChecksum):
			t.Fatalf("byte %d changed: %v", i, err)
		}
		b[i] ^= 1
	}
	if _, err := DecodeHeader(b[1:]); err == nil {
		t.Fatal("short header accepted")
	}
}

func TestHeaderValidate(t *testing.T) {
	tests := []struct {
		rule   string
		change func(*Header)
		offset int // of the refused field; 0: valid
	}{
		{"valid", func(*Header) {}, 0},
		{"version 0", func(h *Header) { h.Version = 0 }, 66},
		{"version 2", func(h *Header) { h.Version = 2 }, 66},
		{"log version with a log to replay", func(h *Header) { h.LogVersion = 1 }, 64},
		{"log version with an empty log", func(h *Header) { h.LogVersion, h.LogGUID = 1, GUID{} }, 0},
		{"sequence number without room", func(h *Header) { h.SequenceNumber = math.MaxUint64 }, 8},
		{"log length unaligned", func(h *Header) { h.LogLength = MiB + 4096 }, 68},
		{"log length at the limit", func(h *Header) { h.LogLength = MaxLogLength }, 0},
		{"log length beyond the limit", func(h *Header) { h.LogLength = MaxLogLength + MiB }, 68},
		{"log GUID without log", func(h *Header) { h.LogLength = 0 }, 48},
		{"no log", func(h *Header) { h.LogLength, h.LogOffset, h.LogGUID = 0, 0, GUID{} }, 0},
		{"log offset unaligned", func(h *Header) { h.LogOffset = MiB + 1 }, 72},
		{"log in the header section", func(h *Header) { h.LogOffset = 0 }, 72},
		{"log end beyond int64", func(h *Header) { h.LogOffset = math.MaxInt64 - MiB + 1 }, 72},
		{"log end overflows", func(h *Header) { h.LogOffset = math.MaxUint64 - MiB + 1 }, 72},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			h := validHeader()
			tt.change(&h)
			err := h.Validate()
			if tt.offset == 0 {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			wantError(t, err, "header", tt.offset, "")
		})
	}
}

func TestCurrentHeader(t *testing.T) {
	older, newer := validHeader(), validHeader()
	newer.SequenceNumber = older.SequenceNumber + 1
	twin := older
	twin.FileWriteGUID = NewGUID()
	bad, worse := errors.New("bad"), errors.New("worse")
	tests := []struct {
		rule       string
		h1         Header
		err1       error
		h2         Header
		err2       error
		index      int
		wantErr    bool
		wantCauses []error
	}{
		{rule: "only the first is valid", h1: older, h2: newer, err2: bad, index: 0},
		{rule: "only the second is valid", h1: newer, err1: bad, h2: older, index: 1},
		{rule: "greater sequence number, first", h1: newer, h2: older, index: 0},
		{rule: "greater sequence number, second", h1: older, h2: newer, index: 1},
		{rule: "identical twins, as Disk2vhd writes", h1: older, h2: older, index: 0},
		{rule: "differing twins", h1: older, h2: twin, wantErr: true},
		{rule: "none", err1: bad, err2: worse, wantErr: true, wantCauses: []error{bad, worse}},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			index, err := CurrentHeader(tt.h1, tt.err1, tt.h2, tt.err2)
			if (err != nil) != tt.wantErr || index != tt.index {
				t.Fatalf("index %d, error %v", index, err)
			}
			for _, cause := range tt.wantCauses {
				if !errors.Is(err, cause) {
					t.Fatalf("%v does not wrap %v", err, cause)
				}
			}
		})
	}
}

func FuzzDecodeHeader(f *testing.F) {
	b := make([]byte, HeaderSize)
	validHeader().Encode(b)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) { // I-OD-3
		if len(b) >= HeaderSize {
			b = b[:HeaderSize]
			le.PutUint32(b[4:], Checksum(b, 4)) // let the fuzzer get past it
		}
		h, err := DecodeHeader(b)
		if err != nil {
			return
		}
		if h.Validate() == nil && h.LogLength > 0 && int64(h.LogOffset)+int64(h.LogLength) < MiB { // I-OD-5
			t.Fatalf("accepted %+v", h)
		}
		again := make([]byte, HeaderSize)
		h.Encode(again)
		if got, err := DecodeHeader(again); err != nil || got != h {
			t.Fatalf("%+v, %v; want %+v", got, err, h)
		}
	})
}
