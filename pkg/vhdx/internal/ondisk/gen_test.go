package ondisk

import (
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var genGUID = rapid.Custom(func(t *rapid.T) GUID {
	return GUID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "bytes"))
})

// genText draws text that UTF-16 can hold, NUL left out.
var genText = rapid.StringOf(rapid.OneOf(rapid.SampledFrom([]rune(`aZ0/\{}é漢😀`)), rapid.Rune()).Filter(func(r rune) bool { return r != 0 }))

// wantError checks that err is an *Error on structure at offset, and says text.
func wantError(t *testing.T, err error, structure string, offset int, text string) {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok {
		t.Fatalf("error %v is no *Error", err)
	}
	if e.Structure != structure || e.Offset != offset || !strings.Contains(e.Reason, text) {
		t.Fatalf("error %q; want %s, byte %#x, with %q", err, structure, offset, text)
	}
}
