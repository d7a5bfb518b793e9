package wire

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
)

// kinds makes an empty message of each kind.
var kinds = []func() message{
	func() message { return &freezeRequest{} },
	func() message { return &freezeReply{} },
	func() message { return &cutRequest{} },
	func() message { return &cutReply{} },
	func() message { return &thawRequest{} },
	func() message { return &followRequest{} },
	func() message { return &reportRequest{} },
	func() message { return &reportReply{} },
	func() message { return &done{} },
}

func TestStrict(t *testing.T) {
	for text, want := range map[string]error{
		`{"version":1,"volume":"v"}`:           nil,
		`{"version":2,"volume":"v","later":1}`: errNewer,
		`{"version":1,"volume":"v","later":1}`: errMalformed,
		`{"version":1}`:                        errMalformed,
		`{"version":0,"volume":"v"}`:           errMalformed,
		`{"volume":"v"}`:                       errMalformed,
		`{"version":1,"volume":""}`:            errMalformed,
		`{"version":1,"volume":7}`:             errMalformed,
		`{"version":1,"volume":"v"} {}`:        errMalformed,
		`{"version":1,"volume":"v"}x`:          errMalformed,
		`[1]`:                                  errMalformed,
		`null`:                                 errMalformed,
		``:                                     errMalformed,
		`{"version":1,"volume":"` + strings.Repeat("v", 300) + `"}`: errMalformed,
	} {
		if err := decode(&frame{[]byte(text)}, &followRequest{}); !errors.Is(err, want) {
			t.Errorf("%.60s: %v, want %v", text, err, want)
		}
	}
	if codeOfMessage(errNewer) != codes.Unimplemented || codeOfMessage(errMalformed) != codes.InvalidArgument {
		t.Error("codes")
	}
	for _, o := range []control.CutOptions{{Freeze: true}, {Limit: -1}, {Freeze: true, Limit: 1, Token: "t"}, {Limit: maxLimit + 1}, {Token: strings.Repeat("t", 300)}} {
		m := &cutRequest{about: of("v"), Snapshot: "s", Freeze: o.Freeze, Limit: o.Limit, Token: o.Token}
		if _, err := encode(m); !errors.Is(err, errMalformed) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// FuzzMessage: whatever arrives is refused, or is a message that can be sent.
func FuzzMessage(f *testing.F) {
	for _, m := range []message{
		&freezeRequest{about: of("v"), Token: "t", Limit: 1},
		&cutRequest{about: of("v"), Snapshot: "s", Freeze: true, Limit: 5},
		&cutReply{Pause: 1, Frozen: 2, Consistency: control.ConsistencyCrash},
		&reportReply{Entries: []entry{{control.StatusDataLoss, "R", "m"}}},
		&done{},
	} {
		fr, err := encode(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(fr.data)
	}
	f.Add([]byte(`{"version":1,"Version":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, empty := range kinds {
			m := empty()
			if err := decode(&frame{b}, m); err != nil {
				if !errors.Is(err, errMalformed) && !errors.Is(err, errNewer) {
					t.Fatalf("no sentinel: %v", err)
				}
				continue
			}
			fr, err := encode(m)
			if err != nil {
				t.Fatalf("%T was read but cannot be sent: %v", m, err)
			}
			again := empty()
			if err := decode(fr, again); err != nil {
				t.Fatalf("%T: %v: %s", m, err, fr.data)
			}
			x, _ := json.Marshal(m)
			if y, _ := json.Marshal(again); string(x) != string(y) {
				t.Fatalf("%s is read as %s", x, y)
			}
		}
	})
}
