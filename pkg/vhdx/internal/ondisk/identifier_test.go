package ondisk

import (
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestFileIdentifierBytes(t *testing.T) {
	b := make([]byte, IdentifierSize)
	if err := (FileIdentifier{Creator: "aé"}).Encode(b); err != nil {
		t.Fatal(err)
	}
	if got, want := string(b[:13]), "vhdxfilea\x00\xe9\x00\x00"; got != want {
		t.Fatalf("bytes %q, want %q", got, want)
	}
}

func TestFileIdentifierRefused(t *testing.T) {
	b := make([]byte, IdentifierSize)
	for _, creator := range []string{strings.Repeat("x", 256), strings.Repeat("😀", 128), "a\x00b", "\xff"} {
		if err := (FileIdentifier{creator}).Encode(b); err == nil {
			t.Fatalf("creator %q accepted", creator)
		}
	}
	if err := (FileIdentifier{}).Encode(b[1:]); err == nil {
		t.Fatal("short destination accepted")
	}
	if _, err := DecodeFileIdentifier(make([]byte, IdentifierSize)); !errors.Is(err, ErrSignature) {
		t.Fatalf("zeros: %v", err)
	}
	if _, err := DecodeFileIdentifier(b[1:]); err == nil {
		t.Fatal("short source accepted")
	}
}

func TestFileIdentifierCreatorIsDiagnosticOnly(t *testing.T) {
	b := []byte("vhdxfile" + strings.Repeat("\x00\xd8", 256)) // lone surrogates, no NUL
	id, err := DecodeFileIdentifier(b)
	if err != nil || id.Creator != strings.Repeat("\uFFFD", 256) {
		t.Fatalf("%q, %v", id.Creator, err)
	}
}

func TestFileIdentifierRoundTrip(t *testing.T) { // I-OD-1
	rapid.Check(t, func(t *rapid.T) {
		b := make([]byte, IdentifierSize)
		want := FileIdentifier{genText.Draw(t, "creator")}
		if want.Encode(b) != nil {
			t.Skip("too long")
		}
		if got, err := DecodeFileIdentifier(b); err != nil || got != want {
			t.Fatalf("%+v, %v; want %+v", got, err, want)
		}
	})
}

func FuzzDecodeFileIdentifier(f *testing.F) {
	b := make([]byte, IdentifierSize)
	if err := (FileIdentifier{"QEMU v7.2.22"}).Encode(b); err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("vhdxfile"))
	f.Fuzz(func(t *testing.T, b []byte) { // I-OD-3
		id, err := DecodeFileIdentifier(b)
		if err != nil {
			return
		}
		again := make([]byte, IdentifierSize)
		if id.Encode(again) != nil {
			return // 256 units without NUL can be read, not written
		}
		if got, err := DecodeFileIdentifier(again); err != nil || got != id {
			t.Fatalf("%+v, %v; want %+v", got, err, id)
		}
	})
}
