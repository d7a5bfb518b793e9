package ondisk

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

func sampleLocator() ParentLocator {
	return ParentLocator{Type: LocatorTypeVHDX, Entries: []LocatorEntry{
		{LocatorParentLinkage, "{83ed0ec3-24c8-49a6-a959-5e4bd1288791}"},
		{LocatorRelativePath, `..\base.vhdx`},
	}}
}

func encodedLocator(t testing.TB, l ParentLocator) []byte {
	t.Helper()
	b, err := l.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParentLocatorBytes(t *testing.T) {
	b := encodedLocator(t, ParentLocator{LocatorTypeVHDX, []LocatorEntry{{"k", "v"}}})
	if got, want := string(b[16:]), "\x00\x00\x01\x00"+"\x20\x00\x00\x00\x22\x00\x00\x00\x02\x00\x02\x00"+"k\x00v\x00"; got != want {
		t.Fatalf("%q, want %q", got, want)
	}
}

func TestParentLocatorRoundTrip(t *testing.T) { // I-OD-1
	rapid.Check(t, func(t *rapid.T) {
		want := ParentLocator{Type: genGUID.Draw(t, "type")}
		for range rapid.IntRange(0, 6).Draw(t, "pairs") {
			want.Entries = append(want.Entries, LocatorEntry{genText.Draw(t, "key"), genText.Draw(t, "value")})
		}
		b, err := want.Encode()
		if err != nil {
			t.Skip(err)
		}
		got, err := DecodeParentLocator(b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestParentLocatorRules(t *testing.T) {
	const second = 20 + 12
	tests := []struct {
		rule   string
		change func(b []byte) []byte
		offset int
	}{
		{"short", func(b []byte) []byte { return b[:19] }, 0},
		{"long", func(b []byte) []byte { return append(b, make([]byte, MiB)...) }, 0},
		{"too many pairs", func(b []byte) []byte { le.PutUint16(b[18:], 257); return b }, 18},
		{"pairs beyond the item", func(b []byte) []byte { le.PutUint16(b[18:], 256); return b }, 18},
		{"key offset 0", func(b []byte) []byte { le.PutUint32(b[second:], 0); return b }, second},
		{"key in the table", func(b []byte) []byte { le.PutUint32(b[second:], second); return b }, second},
		{"value beyond the item", func(b []byte) []byte { le.PutUint32(b[second+4:], uint32(len(b))-2); return b }, second + 4},
		{"value offset overflows", func(b []byte) []byte { le.PutUint32(b[second+4:], 1<<32-2); return b }, second + 4},
		{"key length 0", func(b []byte) []byte { le.PutUint16(b[second+8:], 0); return b }, second},
		{"value length odd", func(b []byte) []byte { le.PutUint16(b[second+10:], 3); return b }, second + 4},
		{"NUL inside", func(b []byte) []byte { b[len(b)-2] = 0; return b }, second + 4},
		{"half a surrogate pair", func(b []byte) []byte { b[len(b)-1] = 0xD8; return b }, second + 4},
		{"repeated key", func(b []byte) []byte {
			copy(b[second:second+4], b[20:24])
			copy(b[second+8:second+10], b[28:30])
			return b
		}, second},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			_, err := DecodeParentLocator(tt.change(encodedLocator(t, sampleLocator())))
			wantError(t, err, "Parent Locator", tt.offset, "")
		})
	}
	for _, bad := range [][]LocatorEntry{
		{{"", "v"}}, {{"k", ""}}, {{"k", "a\x00"}}, {{"k", "\xff"}}, {{"k", "v"}, {"k", "w"}},
		{{"k", strings.Repeat("x", 32768)}}, make([]LocatorEntry, 257),
	} {
		if _, err := (ParentLocator{Entries: bad}).Encode(); err == nil {
			t.Fatalf("encoded %.60q", bad)
		}
	}
}

func TestParentLocatorValue(t *testing.T) {
	l := sampleLocator()
	if v, ok := l.Value(LocatorRelativePath); !ok || v != `..\base.vhdx` {
		t.Fatalf("%q, %v", v, ok)
	}
	if v, ok := l.Value("Relative_Path"); ok {
		t.Fatalf("case of a key ignored: %q", v)
	}
}

func FuzzDecodeParentLocator(f *testing.F) {
	f.Add(encodedLocator(f, sampleLocator()))
	f.Fuzz(func(t *testing.T, b []byte) { // I-OD-3
		l, err := DecodeParentLocator(b)
		if err != nil {
			return
		}
		if err := l.Check(); err == nil {
			if first, _, err := l.Linkage(); err != nil || l.Type != LocatorTypeVHDX {
				t.Fatalf("%+v: checked, and then %v, %v", l, first, err)
			}
		}
		again, err := l.Encode()
		if err != nil {
			return // shared text can make the plain form too long
		}
		if got, err := DecodeParentLocator(again); err != nil || !cmp.Equal(got, l) {
			t.Fatalf("%+v, %v; want %+v", got, err, l)
		}
	})
}
